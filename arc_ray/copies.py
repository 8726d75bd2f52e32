"""This node's cache: folders made once and shared by its processes, and deleted when nobody has needed them for long.

The cache is $XDG_CACHE_HOME/arc_ray or ~/.cache/arc_ray, and where that cannot be written a folder for temporary files.
Beside each folder, `<name>.lock` is held by who makes or deletes it, and `<name>.used` by everyone who reads it: these
locks end with their process, however it ends.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

IDLE_SECONDS = 14 * 24 * 3600.0
"""A folder that nobody has asked for in so long is deleted when another one is made."""
UNFINISHED = ".unfinished"

_read: dict[Path, int] = {}
"""The locks (file descriptors) of folders that this process was given, and may read until its end."""


def cached(name: str, make: Callable[[Path], None], num_bytes: int = 0) -> Path:
    """Return the folder of this name in the cache; `make` fills a new one, in one process only.

    Before that idle folders are deleted, and while there is no room for `num_bytes` more, those that were not asked for
    the longest; never one that a living process was given.
    """
    target = _cache() / name
    with FileLock(f"{target}.lock"):
        if target not in _read:
            _read[target] = os.open(f"{target}.used", os.O_CREAT | os.O_RDWR)
            fcntl.flock(_read[target], fcntl.LOCK_SH)
        Path(f"{target}.used").touch()
        if not target.exists():
            _make_room(target.parent, num_bytes)
            unfinished = target.with_name(f"{name}{UNFINISHED}")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(target)
    return target


def _make_room(cache: Path, num_bytes: int) -> None:
    for folder in sorted((path for path in cache.iterdir() if path.is_dir()), key=_last_use):
        is_idle = time.time() - _last_use(folder) > IDLE_SECONDS
        is_in_the_way = folder.suffix != UNFINISHED and shutil.disk_usage(cache).free < num_bytes
        if is_idle or is_in_the_way:
            with suppress(Timeout, BlockingIOError):  # somebody makes or reads it
                _delete(folder)


def _last_use(folder: Path) -> float:
    """Return when a folder was asked for; now, where another process has just deleted it."""
    for path in (Path(f"{folder}.used"), folder):
        with suppress(FileNotFoundError):
            return path.stat().st_mtime
    return time.time()


def _delete(folder: Path) -> None:
    """Delete a folder. Raises Timeout or BlockingIOError where it is needed."""
    with FileLock(f"{folder}.lock", timeout=0), Path(f"{folder}.used").open("a") as used:
        fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():  # another process that makes room may have been here first
            shutil.rmtree(folder)
        Path(used.name).unlink()


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "arc_ray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"arc_ray-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder
