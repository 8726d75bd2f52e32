"""The one exception for the user's mistakes, also where a worker finds them; everything else that escapes is ours."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
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

IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
"""Numbers of the system's errors for what is no readable file, and will be none when asked again."""

SECRET = re.compile(r"api_?key|access_?key|secret|passw|credential|(^|[^a-z])token($|[^a-z])", re.IGNORECASE)
"""What names of keys to buckets and of trackers hold."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system's errors for a disk, a quota or a file that is full."""

WHAT_HELPS = (
    "in training, lower train.micro_rows or train.row_tokens, or set model.gradient_checkpointing=true; in evaluation, lower"
    " evaluate.batch_tokens; `arc-ray check CONFIG` says what fits"
)


def plain(text: str, most: int = 3000) -> str:
    """Write out what a terminal would obey, such as an escape in the name of a file, and cut what nobody would read."""
    text = text if len(text) <= most else f"{text[: most // 2]} [...] {text[-most // 2 :]}"
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: object, most: int = 300) -> str:
    """Write what an error says in one line of so many characters at most: messages of libraries have many."""
    return " ".join(str(error).split())[:most]


def first_few(names: Sequence[str], most: int, between: str = ", ") -> str:
    """Name the first of many, and how many more there are."""
    more = f"{between.rstrip(', ')} and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def refuse_place(uri: str) -> None:
    """Raise UserError for what is no path, and for a URI that holds a key, which would be written down with it."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{uri!r} is no path: {error}") from error
    place, _, query = uri.partition("?")
    scheme, is_uri, rest = place.partition("://")
    if is_uri and not rest.strip("/"):
        raise UserError(f"{uri} names no bucket; write {scheme}://bucket/path")
    user, at, bucket = rest.rpartition("@")
    if is_uri and ((at and ":" in user) or SECRET.search(query)):
        raise UserError(
            f"{scheme}://...@{bucket}: a key in a path would be written down with it; leave it out, and set"
            f" AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or give the nodes a role"
        )


def unreadable(folder: str, file: str, error: OSError) -> UserError:
    """Say why a file of a folder, or the folder's list, cannot be read."""
    if isinstance(error, NotADirectoryError):
        return UserError(f"{folder} is no folder")
    return UserError(f"{file} cannot be read: {error}; put a file there")


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
        if "StorageError: " in text:  # a worker's, with its traceback
            return StorageError(text.rpartition("StorageError: ")[2])
        return StorageError(f"a disk is full: {text[-300:]}; free some space, or give a storage=... that has it")
    if "loss scale already at minimum" in text:
        return UserError(
            "model.dtype float16: gradients overflow however far the loss is scaled down; take bfloat16 or float32, and a"
            " lower train.lr; the newest checkpoint is from before that"
        )
    names = {c.__name__ for c in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "DefaultCPUAllocator: can't allocate memory" in text:
        return TooLargeError(f"out of memory: {text[:300] or type(error).__name__}; {WHAT_HELPS}")
    return None


@contextmanager
def located(where: str) -> Iterator[None]:
    """Have the message of a user's mistake begin with the place it is about, unless it names that place itself."""
    try:
        yield
    except UserError as error:
        if re.search(rf"(?<!\w){re.escape(where)}(?!\w)", str(error)):
            raise
        raise type(error)(f"{where}: {error}") from error.__cause__


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a user's mistake as the UserError that it was in the worker that met it; a full disk or memory is one, too."""
    try:
        yield
    except Exception as error:
        if (mistake := mistake_in(error)) is None:
            raise
        raise mistake from None
