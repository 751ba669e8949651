"""The error of a compression."""

from studyloom.errors import UserError


class CompressError(UserError):
    """A winner cannot be compressed: a package is missing, or ONNX lacks an operator."""
