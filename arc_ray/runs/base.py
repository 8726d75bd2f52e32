"""The model that is meant: a name, "@run" or a folder; its files on this node, and what tells two apart."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from arc_ray.config.section import BUILT_IN, is_model_name
from arc_ray.contents import damaged, parse_json
from arc_ray.errors import UserError, located, one_line
from arc_ray.runs.folder import resolve_reference
from arc_ray.runs.obtain import find, in_config
from arc_ray.seeding import digest64
from arc_ray.storage import Folder

NAMES_AND_VERSIONS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Keys of a model's config.json that say nothing of its weights."""
MOST_HEADER = 100 * 2**20
"""Bytes of the header of a safetensors file at most, by the format's own rule."""
SAMPLED_BYTES = 256
"""Bytes of each tensor that a fingerprint looks at: a training changes some of them."""


class IndexShape(TypedDict):
    """model.safetensors.index.json: which file holds each tensor."""

    weight_map: dict[str, str]


def model_path(base: str | None, storage: str, weights: bool = True) -> str:
    """Return the folder of a base on this node; a hub's model that nobody has obtained yet may lack its `weights`.

    Raises UserError for what is no model.
    """
    if not base:
        raise UserError(
            f"model.base is not set: give a name ({', '.join(BUILT_IN)}), a folder, a hub name,"
            ' "@run", or model.scratch for a small new model'
        )
    if is_model_name(base):
        return str(named_model(base, storage, weights).on_this_node())
    path = local_folder(base, storage)
    if not os.path.isdir(path):
        raise UserError(f"model.base {base}: there is no such folder")
    if not (Path(path) / "config.json").exists():
        raise UserError(f"model.base {base}: {path} is no model: it has no config.json")
    return path


def named_model(name: str, storage: str, weights: bool = True) -> Folder:
    """Return where the model of a name that a config gives is, as `find` does. Raises UserError."""
    with located(in_config(name)):
        return find(name, storage, weights)


def local_folder(value: str, storage: str) -> str:
    """Return where the files of a folder or of "@run" are on this node. Raises UserError."""
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
        reason = one_line(error)
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


def fingerprint(path: str) -> str | None:
    """Digest what a model is, wherever it is: its config, and of each tensor name, dtype, shape and bytes of its middle.

    None for weights that are not in safetensors files.
    """
    folder = Path(path)
    index, about = folder / "model.safetensors.index.json", folder / "config.json"
    names = {"model.safetensors"}
    if index.exists():
        with damaged(str(index)):
            names = set(parse_json(index.read_bytes(), IndexShape)["weight_map"].values())
    if not all(file.exists() for file in (about, *(folder / name for name in names))):
        return None
    with damaged(str(about)):
        config = parse_json(about.read_bytes(), dict[str, Any])
    config = {key: value for key, value in config.items() if key not in NAMES_AND_VERSIONS}
    tensors = sorted(tensor for name in names for tensor in _tensors(folder / name))
    return f"{digest64(json.dumps(config, sort_keys=True), tensors):016x}"


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int], bytes]]:
    """Yield name, dtype, shape and bytes of the middle of each tensor in a safetensors file."""
    with damaged(str(file)), file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(size, MOST_HEADER)))
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = about["data_offsets"]
                stream.seek(8 + size + (begin + end) // 2)
                yield name, about["dtype"], about["shape"], stream.read(min(SAMPLED_BYTES, (end - begin) // 2))
