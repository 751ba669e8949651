"""What is kept of a trial: its reports, failures, files, provenance, and where its time went."""

__all__ = ["failures", "files", "provenance", "reporter", "rows", "stopwatch"]
