"""The kinds of error rayrec raises; a service maps each kind to one HTTP status."""


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
