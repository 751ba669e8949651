"""Workers as actors of a Ray cluster."""

from studyloom.extras.ray.launcher import Ray

__all__ = ["Ray"]
