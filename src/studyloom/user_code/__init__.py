"""The user's code: how it is imported, sent to other processes, and known by its digest."""

__all__ = ["digests", "importing", "pickled", "tracebacks"]
