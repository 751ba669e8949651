"""Fixtures that compose a definition of a toy study."""

from definition_fixtures import asking, composed, composing, folds, main

__all__ = ["asking", "composed", "composing", "folds", "main"]
