"""The version of studyloom."""

__version__ = "0.1.0"
