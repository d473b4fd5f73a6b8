"""The kinds of error rayrec raises; the service maps each kind to one HTTP status."""

import traceback
from functools import partial
from typing import Any, Literal

PictureReason = Literal[
    "bad_uri", "not_allowed", "not_found", "unreadable", "http_error", "timeout",
    "too_large", "too_many_pixels", "not_a_picture", "truncated", "damaged",
]  # fmt: skip


class RayrecError(Exception):
    """Base of every error that a user can act on."""


class SchemaError(RayrecError):
    """A table, file or config is not what it must be."""


class NotFound(RayrecError):
    """An item, artifact or file that was named does not exist."""


class IncompatibleArtifact(RayrecError):
    """An artifact is truncated, altered, or made for another encoder or format."""


class Conflict(RayrecError):
    """Somebody else moved `current.json` first."""


class InvalidRequest(RayrecError):
    """A request cannot be answered as it was put.

    code: stable machine-readable name; field: path of the value at fault; hint: what to send instead.
    """

    def __init__(self, code: str, message: str, *, field: str | None = None, hint: str | None = None):
        super().__init__(message if hint is None else f"{message} ({hint})")
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions are pickled by their positional arguments alone; this one travels between replicas."""
        return partial(type(self), field=self.field, hint=self.hint), (self.code, self.message)


class Unauthorized(RayrecError):
    """No key or session that we know."""


class Forbidden(RayrecError):
    """A key or session that may not do this."""


class TooLarge(RayrecError):
    """A request body over the limit, in bytes or in depth."""


class Overloaded(RayrecError):
    """More requests than can be answered in time; worth trying again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: int = 1):
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (str(self),)


class Unavailable(Overloaded):
    """A part that the answer cannot do without does not answer, or not in time."""


class VersionNotLoaded(RayrecError):
    """A replica was asked for an index version that it has not loaded, or no longer has."""


class BadPicture(RayrecError):
    """A picture that may not be read, cannot be had, or is none; `reason` is a stable name to count by."""

    def __init__(self, reason: PictureReason, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, str(self))


def described(error: BaseException) -> str:
    """What kind of error it was and where, for a log: never its message, which may hold what a shopper sent."""
    where = "".join(traceback.format_tb(error.__traceback__)[-6:])
    return f"{type(error).__name__}\n{where}"
