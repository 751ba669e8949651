"""The user's code: how it is imported, sent to other processes, and known by its digest."""

__all__ = [
    "digests",
    "given_objects",
    "importing",
    "pickled",
    "source_code",
    "stable_texts",
    "tracebacks",
]
