"""One driver for one run folder: it says in `owner.json`, again and again, that it is at work; a second one is told and ends.

An owner lives if the file changes while somebody watches it: clocks of machines differ, and nobody need be reachable. So it
holds on a disk, on NFS and in a bucket, for jobs of one cluster or of two, and an owner that died locks nothing for long.
"""

import itertools
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import Field
from typing_extensions import TypedDict

from arc_ray.contents import parse_json
from arc_ray.errors import UserError
from arc_ray.progress import Progress, repeated
from arc_ray.runs.machine import boot
from arc_ray.storage import Folder

OWNER_FILE = "owner.json"
BEAT_SECONDS = 10.0
LOST_SECONDS = 90.0
"""An owner without a sign for so long has died: file systems over a network show old contents for up to a minute."""

SETTLE_SECONDS = 2.0
"""More than passes between one's last look at the file and the end of one's own writing of it: who wrote last has it."""

UNWRITTEN = {"id": ""}
"""What a local file holds that somebody has just made."""


class OwnerShape(TypedDict):
    """owner.json."""

    id: str
    machine: str
    process: Annotated[int, Field(ge=1, lt=2**31)]


@contextmanager
def owned(folder: Folder, command: str, progress: Progress) -> Iterator[None]:
    """Be the only driver at work on a run folder. Raises UserError where another one is, or has taken the folder over.

    What a driver leaves that was killed is taken over: at once on its own machine, elsewhere after a minute without a sign.
    """
    mine, numbers, lost = _myself(command), itertools.count(1), threading.Event()
    _take(folder, mine, progress)

    def beat() -> None:
        if lost.is_set():
            return
        if (_read(folder) or mine)["id"] == mine["id"]:
            folder.write_json(OWNER_FILE, {**mine, "beat": next(numbers)})
        else:
            lost.set()
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with repeated(beat, BEAT_SECONDS):
            yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise UserError(
            f"{folder.uri}: this process gave no sign for over {LOST_SECONDS:.0f} s, and another one has taken over"
        ) from None
    finally:
        with suppress(OSError):  # where the storage does not answer, or a local folder holds what was made
            if not lost.is_set():
                folder.delete(OWNER_FILE)
                if folder.is_local:
                    folder.local_path().rmdir()


def _take(folder: Folder, mine: dict[str, Any], progress: Progress) -> None:
    """Write the owner's file, unless a living driver has. Raises UserError."""
    while not _is_first(folder, mine):
        if (owner := _read(folder)) is None or ((seen := _watch(folder, owner, progress)) is None):
            continue
        if seen != owner:
            stop = f"`ray job stop {seen['job']}`" if seen.get("job") else "Ctrl-C there"
            raise UserError(
                f"{folder.uri}: {_who(seen)} is at work on it since {seen.get('begun')}; wait for its end, or end it ({stop})"
                f" and call this command again, which goes on from there"
            )
        if _is_last(folder, mine):
            return


def clear_after_kill(folder: Folder) -> None:
    """Delete the owner's file of a finished run whose driver was killed, on this machine, after it had written the result."""
    owner = _read(folder)
    if owner and _has_ended(owner):
        folder.delete(OWNER_FILE)


def _has_ended(owner: dict[str, Any]) -> bool:
    return owner.get("machine") == _machine() and not psutil.pid_exists(owner["process"])


def _watch(folder: Folder, owner: dict[str, Any], progress: Progress) -> dict[str, Any] | None:
    """Return what the owner's file holds as soon as it changes; what it held if that does not happen in time."""
    if _has_ended(owner):
        return owner
    progress.note(f"{folder.uri}: {_who(owner)} was at work on it; waits up to {LOST_SECONDS:.0f} s for a sign of it")
    end = time.monotonic() + LOST_SECONDS
    while (seen := _read(folder)) in (owner, UNWRITTEN) and time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 10)
    return seen


def _is_first(folder: Folder, mine: dict[str, Any]) -> bool:
    """Write a file that is not there yet, and tell whether that was so; a file system knows, of a bucket see `_is_last`."""
    if not folder.is_local:
        return not folder.exists(OWNER_FILE) and _is_last(folder, mine)
    folder.local_path().mkdir(parents=True, exist_ok=True)
    try:
        file = (folder.local_path() / OWNER_FILE).open("x")
    except FileExistsError:
        return False
    try:
        with file:
            json.dump(mine, file)
    except OSError:  # a full disk; left empty, the file would have the next driver wait for a sign of this one
        folder.delete(OWNER_FILE)
        raise
    return True


def _is_last(folder: Folder, mine: dict[str, Any]) -> bool:
    """Write the file over what is there, and tell whether nobody else does so at the same time, but later."""
    folder.write_json(OWNER_FILE, mine)
    time.sleep(SETTLE_SECONDS)
    return (_read(folder) or mine)["id"] == mine["id"]


def _read(folder: Folder) -> dict[str, Any] | None:
    try:
        return parse_json(folder.read_bytes(OWNER_FILE), OwnerShape)
    except FileNotFoundError as error:
        if folder.is_local and (folder.local_path() / OWNER_FILE).is_symlink():  # which cannot be written either
            raise UserError(f"{folder.uri}/{OWNER_FILE} is a link to nothing; delete it") from error
        return None
    except ValueError:
        return UNWRITTEN


def _myself(command: str) -> dict[str, Any]:
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {}).get("job_submission_id")
    return {
        "id": uuid.uuid4().hex,
        "command": command,
        "job": job,
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str:
    """Name what numbers processes: this boot of this machine, or a container on it."""
    container = Path("/proc/self/ns/pid")
    return f"{boot()} {container.readlink()}" if container.exists() else boot()


def _who(owner: dict[str, Any]) -> str:
    job = f"job {owner['job']}, " if owner.get("job") else ""
    return f"`arc-ray {owner.get('command', '...')}` ({job}process {owner.get('process')} on {owner.get('host')})"
