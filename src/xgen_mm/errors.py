"""Errors a caller may want to catch. All are `ValueError` subclasses."""


class XGenMMError(ValueError):
    """Base class of the package's own errors."""


class PlaceholderMismatchError(XGenMMError):
    """The prompt holds another number of image tokens than the images yield features."""


class ImageInputError(XGenMMError):
    """A picture cannot be read or has no usable pixels."""


class ConversionError(XGenMMError):
    """A checkpoint does not hold what its layout asks for, or cannot be read safely."""
