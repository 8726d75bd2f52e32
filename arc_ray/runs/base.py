"""The base of a config: its files on this node, by whatever name it has, or one message why there is no model in them."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from arc_ray.config.section import BUILT_IN
from arc_ray.errors import UserError, nearest
from arc_ray.runs.fetch import find_model
from arc_ray.runs.folder import resolve_reference
from arc_ray.storage import Folder


def model_path(base: str | None, storage: str) -> str:
    """Resolve a base to a local folder or a hub name. Raises UserError where a path is meant and is no model."""
    if not base:
        raise UserError(
            f"model.base is not set: give a name ({', '.join(BUILT_IN)}), a folder, a hub name,"
            ' "@run", or model.scratch for a small new model'
        )
    if base in BUILT_IN:
        return str(find_model(base, storage).on_this_node())
    path = local_folder(resolve_reference(base, storage))
    if Path(path).is_dir():
        if not (Path(path) / "config.json").exists():
            raise UserError(f"model.base {base}: {path} is no model: it has no config.json")
    elif base.startswith(("/", ".", "~")) or base.count("/") > 1:
        raise UserError(f"model.base {base}: there is no such folder")
    elif "/" not in base and (hint := nearest(base.lower(), BUILT_IN)):
        raise UserError(f"model.base {base}: no folder, and no built-in model{hint}")
    return path


def local_folder(path: str) -> str:
    """Return where the files of a folder in a bucket are on this node; local paths and hub names as they are."""
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
