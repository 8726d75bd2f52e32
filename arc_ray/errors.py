"""The one exception for the user's mistakes, also where a worker finds them; everything else that escapes is ours."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake only the user can mend: the message says what, where and how; `arc-ray` prints it and exits with 2."""

    exit_code = 2


class NotMadeYetError(UserError):
    """What a config makes itself is not there yet: generated data, or a run that is trained first."""


class StorageError(UserError):
    """The storage is full, away or closed: nothing is wrong with what was made for it, and the next call makes it again."""


class TooLargeError(UserError):
    """Memory did not hold what was asked for: said like a mistake, and not tried again, but with exit code 1."""

    exit_code = 1


STORAGE_ERRORS = ("AWS Error", "google::cloud::Status")
"""How the texts of pyarrow's errors from a bucket begin, but for files that are not there."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system's errors for a disk, a quota or a file that is full."""

WHAT_HELPS = (
    "in training, lower train.micro_rows or train.row_tokens, or set model.gradient_checkpointing=true; in evaluation, lower"
    " evaluate.batch_tokens; `arc-ray check CONFIG` says what fits"
)


def nearest(wrong: str, known: Iterable[str], cutoff: float = 0.6, before: str = "", most: int = 1) -> str:
    """Return "; did you mean ...?" with what stands `before` a known name, or nothing where none is near (`cutoff`)."""
    near = difflib.get_close_matches(wrong, sorted(known), n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(f'{before}{name}' for name in near)}?" if near else ""


def mistake_in(error: BaseException) -> UserError | None:
    """Find the user's mistake that an error of Ray's carries: a task's cause, or what a worker of a group raised."""
    carried = [getattr(error, "cause", None), *getattr(error, "worker_failures", {}).values()]
    # What Ray raises for a task that raised a UserError is one itself, with a traceback for its message: look inside first.
    found = (mistake_in(inner) for inner in carried if isinstance(inner, BaseException))
    return next((mistake for mistake in found if mistake), error if isinstance(error, UserError) else _limit(error))


def _limit(error: BaseException) -> UserError | None:
    """Say which limit an error is about, if a disk or memory was full or a bucket did not answer; libraries have classes
    and texts of their own."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and any(name in text for name in STORAGE_ERRORS):
        return StorageError(
            f"the storage does not answer as it should: {text[:400]}; the same command goes on from here"
        )
    if (isinstance(error, OSError) and error.errno in FULL) or "No space left on device" in text:
        return StorageError(f"a disk is full: {text[-300:]}; free some space, or give a storage=... that has it")
    names = {c.__name__ for c in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "DefaultCPUAllocator: can't allocate memory" in text:
        return TooLargeError(f"out of memory: {text[:300] or type(error).__name__}; {WHAT_HELPS}")
    return None


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a user's mistake as the UserError that it was in the worker that met it; a full disk or memory is one, too."""
    try:
        yield
    except Exception as error:
        if (mistake := mistake_in(error)) is None:
            raise
        raise mistake from None
