"""Fixtures that compose a definition of a toy study."""

from definition_fixtures import composed, composing, define_with, folds, main

__all__ = ["composed", "composing", "define_with", "folds", "main"]
