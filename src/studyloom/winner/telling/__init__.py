"""Tells others of the answer of a study."""

from studyloom.winner.telling.trackers import tell_trackers

__all__ = ["tell_trackers"]
