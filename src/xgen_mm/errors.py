"""Errors a caller may want to catch, all of them `ValueError` subclasses; and how an error is told in one line."""


class XGenMMError(ValueError):
    """Base class of the package's own errors."""


class PlaceholderMismatchError(XGenMMError):
    """The prompt holds another number of image tokens than the images yield features."""


class ImageInputError(XGenMMError):
    """A picture cannot be read or has no usable pixels."""


class ConversionError(XGenMMError):
    """A checkpoint does not hold what its layout asks for, or cannot be read safely."""


class PushError(XGenMMError):
    """A checkpoint cannot be sent to the Hub, or must not be."""


class DataError(XGenMMError):
    """A row of a data set cannot be used; `reason` names the kind of fault in a few words."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, str]]:
        """Both parts, so that the error survives the way out of a worker process."""
        return type(self), (self.reason, str(self))


def one_line(error: BaseException) -> str:
    """Message of an error without line breaks, never empty."""
    return " ".join(str(error).split()) or type(error).__name__
