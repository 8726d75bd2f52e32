"""Calls `arc-ray` in this process, so that thousands of calls are cheap, and judges what became of a hostile input."""

import contextlib
import hashlib
import io
import os
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer.main

from arc_ray.cli import main
from arc_ray.errors import plain

# What commands there are and what they take, found out once: else a tenth of all seconds of such calls.
typer.main.get_command = cache(typer.main.get_command)

SECONDS, PATIENCE = 30, 600
"""A call takes at most so much of a processor, and on a machine that is busy with other work at most so long."""
MOST_SAID = 4000
"""Characters of a message that a person still reads."""


class HangError(BaseException):
    """A call took longer than `SECONDS`; nothing may swallow it."""


@dataclass(frozen=True)
class Outcome:
    """How a call ended; `fault` is what escaped, else None."""

    code: object
    out: str
    err: str
    fault: BaseException | None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError

    limits = {signal.ITIMER_VIRTUAL: (signal.SIGVTALRM, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, PATIENCE)}
    before = {number: signal.signal(number, stop) for number, _ in limits.values()}
    for timer, (_, seconds) in limits.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in limits:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def outcome_of(work: Callable[[], object]) -> Outcome:
    """Do something as the command line would, and catch how it ends and what it says."""
    out, err, code, fault = io.StringIO(), io.StringIO(), 0, None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(action="ignore"):
        try:
            with _limited():
                work()
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code, fault = 1, error
    return Outcome(code, out.getvalue(), err.getvalue(), fault)


def call(*words: str) -> Outcome:
    """Call `arc-ray` with these words."""
    arguments, path, interrupt, here = sys.argv, list(sys.path), signal.getsignal(signal.SIGINT), os.getcwd()
    sys.argv = ["arc-ray", *words]
    try:
        return outcome_of(main)
    finally:
        sys.argv, sys.path[:] = arguments, path
        signal.signal(signal.SIGINT, interrupt)
        os.chdir(here)


def complaint(outcome: Outcome, *names: str) -> str | None:
    """Say what is wrong with how a call ended: 0 or 2, one message that names one of `names`, no trace; None if nothing."""
    said = outcome.err
    if outcome.fault is not None:
        return f"{type(outcome.fault).__name__} escaped"
    if outcome.code not in (0, 2):
        return f"exit code {outcome.code}"
    if "Traceback (most recent call last)" in said + outcome.out:
        return "a traceback"
    if any(not (c.isprintable() or c in "\n\t\r") for c in said + outcome.out):
        return "control characters on the terminal"
    if outcome.code == 0:
        return None
    if "Usage: " in said:  # of the parser of options, which names what it was given in its own way
        return None
    if len(said) > MOST_SAID:
        return f"a message of {len(said)} characters"
    if sum(line.startswith("error: ") for line in said.splitlines()) != 1:
        return "not one message"
    if names and not any(way(name) in said for name in names for way in (plain, lambda name: repr(name)[1:-1])):
        return "the message does not name the place"
    return None


def digest(folder: Path) -> dict[str, str]:
    """Digest all that is below a folder, by path: modes and contents, and where links lead."""
    found = {}
    for here, folders, files in os.walk(folder):
        for path in (os.path.join(here, name) for name in (*folders, *files)):
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                found[path] = f"link to {os.readlink(path)}"
            elif stat.S_ISREG(about.st_mode):
                found[path] = _content(path, about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino)
            else:
                found[path] = "folder"
    return found


@cache
def _content(path: str, mode: int, *_: int) -> str:
    """Digest a file, unless nobody has written to it since."""
    return f"{mode:o} {hashlib.blake2b(Path(path).read_bytes()).hexdigest()}"
