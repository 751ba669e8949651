"""What the rest of a search is expected to gain, told by the values of its trials so far.

The best of n exponential values grows by σ·(1/(n+1) + … + 1/N) on the way to N, and σ is the mean
distance of the best j values from the next one (A. Rényi, "On the theory of order statistics", Acta
Mathematica Hungarica 4, 1953). The largest of other values behave alike if their tail is that of an
exponential or normal distribution, and shorter tails gain less (I. Weissman, "Estimation of
parameters and large quantiles based on the k largest observations", JASA 73, 1978). A sampler that
learns moves its values up, and closer to each other, so that the estimate falls as it converges.

It needs neither the space nor a model of it, as the regret bound of A. Makarova and others has
("Automatic termination for hyperparameter optimization", 2022, arXiv 2104.08166).
`python scripts/bench.py search --only ends` measures what an end by it saves and costs.
"""

import math
from bisect import insort
from collections.abc import Sequence

SHARE = 0.2  # of the trials: the largest that saves 30 % on HPOLib with 40 trials
FEWEST = 3  # of the best, since two may be alike by chance
FIRST = 10  # trials before any estimate; Optuna's TPE has drawn these at random


def gains(values: Sequence[float | None], trials: int) -> list[float | None]:
    """Returns what the rest of a budget was expected to gain, after each trial.

    Args:
        values: of the trials in their order, the more the better; None if a trial has none. It
            counts as one that is not among the best, as a pruned one is.
        trials: the budget.

    Returns:
        For each trial the expected gain of the best value from then on, in units of the values;
        None where too few trials have one.
    """
    known: list[float] = []
    found: list[float | None] = []
    for count, value in enumerate(values, 1):
        if value is not None and math.isfinite(value):
            insort(known, value)
        found.append(_gain(known, count, trials))
    return found


def last_gain(values: Sequence[float | None], trials: int) -> float | None:
    """Returns the last of `gains` alone, which workers ask for again and again; None without one.

    Args:
        values: see `gains`.
        trials: the budget.
    """
    known = sorted(value for value in values if value is not None and math.isfinite(value))
    return _gain(known, len(values), trials)


def _gain(known: Sequence[float], count: int, trials: int) -> float | None:
    """Returns the expected gain after `count` trials, of which those with a value are sorted."""
    best = max(FEWEST, math.ceil(SHARE * count))
    if count < FIRST or len(known) <= best:
        return None
    scale = sum(known[-best:]) / best - known[-best - 1]
    # Not below 0 by rounding; and with equal values nothing is gained.
    return max(0.0, scale) * math.log(max(trials, count) / count)
