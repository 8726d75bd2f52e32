"""The one exception for the user's mistakes; everything else that escapes is ours."""


class UserError(Exception):
    """A mistake only the user can mend: the message says what, where and how; `arc-ray` prints it and exits with 2."""
