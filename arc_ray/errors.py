"""The one exception for the user's mistakes, also where a worker finds them; everything else that escapes is ours."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake only the user can mend: the message says what, where and how; `arc-ray` prints it and exits with 2."""


class NotMadeYetError(UserError):
    """What a config makes itself is not there yet: generated data, or a run that is trained first."""


def mistake_in(error: BaseException) -> UserError | None:
    """Find the user's mistake that an error of Ray's carries: a task's cause, or what a worker of a group raised."""
    carried = [getattr(error, "cause", None), *getattr(error, "worker_failures", {}).values()]
    # What Ray raises for a task that raised a UserError is one itself, with a traceback for its message: look inside first.
    found = (mistake_in(inner) for inner in carried if isinstance(inner, BaseException))
    return next((mistake for mistake in found if mistake), error if isinstance(error, UserError) else None)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a user's mistake that Ray brings from a worker as the UserError that it was there."""
    try:
        yield
    except Exception as error:
        if (mistake := mistake_in(error)) is None:
            raise
        raise mistake from None
