"""Fixtures for workers that run in the process of the tests."""

from worker_fixtures import checkpoints, definition, impatient, kind, threads_are_workers, url

__all__ = ["checkpoints", "definition", "impatient", "kind", "threads_are_workers", "url"]
