"""What a job has spent: hours of processor cores and of GPUs, and what they cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import MADE, TIMES

HOUR = 3600.0


@dataclass(frozen=True)
class Hours:
    """Hours of computation.

    Args:
        cores: hours of processor cores, by the threads of the workers.
        gpus: hours of GPUs.
    """

    cores: float = 0.0
    gpus: float = 0.0

    def cost(self, per_hour: float | None) -> float | None:
        """Returns what these hours cost.

        Args:
            per_hour: the price of an hour of a GPU, or of a core where no GPU was used; None if it
                is not known.
        """
        return None if per_hour is None else per_hour * (self.gpus or self.cores)


def hours_of(trials: Iterable[FrozenTrial]) -> Hours:
    """Adds up what workers spent on trials that have ended or were paused, also before they died.

    A trial that ran on the CPU counts for each thread of its worker; each of several ranks counts.
    Without a stored environment it counts as one core.
    """
    cores = gpus = 0.0
    for trial in trials:
        times = trial.user_attrs.get(TIMES)
        if not isinstance(times, Mapping):
            continue
        seconds = sum(value for value in times.values() if isinstance(value, int | float))
        made: Mapping[str, Any] = trial.user_attrs.get(MADE) or {}
        environment = made.get("environment") or {}
        ranks = environment.get("ranks") or 1
        cores += seconds * ranks * (environment.get("threads") or 1)
        if made.get("device") == "cuda":
            gpus += seconds * ranks
    return Hours(cores / HOUR, gpus / HOUR)
