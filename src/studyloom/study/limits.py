"""What a trial and a study are limited to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a trial and of a study.

    Args:
        lease: seconds for which a worker keeps its trial without a sign of life.
        trial_timeout: seconds that a trial may take; None for no limit.
        max_attempts: workers that may die of one trial before it has failed.
        max_failures: trials in a row that may fail for the same reason before the study stops.
    """

    lease: float = 60.0
    trial_timeout: float | None = None
    max_attempts: int = 3
    max_failures: int = 5
