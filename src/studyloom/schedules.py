"""Learning-rate schedules: pure functions from progress to a factor on the base rate.

Configs name them by `_target_`. Progress is the share of training that is done, from 0 to 1. The
factor is from 0 to 1 too.
"""

from math import cos, pi


def constant(progress: float) -> float:
    """Keeps the base rate."""
    _check_share("progress", progress)
    return 1.0


def cosine(progress: float, warmup: float = 0.0, final: float = 0.0) -> float:
    """Rises linearly from 0 to 1 until `warmup`, then falls to `final` along half a cosine.

    Without a `warmup` it begins at 1. `warmup` is a progress, `final` a factor.

    Sources: Loshchilov and Hutter 2017 (arXiv:1608.03983) for the fall, Goyal et al. 2017
    (arXiv:1706.02677) for the rise.
    """
    _check_share("progress", progress)
    _check_share("warmup", warmup)
    _check_share("final", final)
    if progress < warmup:
        return progress / warmup
    if warmup == 1:
        return 1.0
    return _ease(1.0, final, (progress - warmup) / (1 - warmup))


def one_cycle(
    progress: float, peak: float = 0.3, start: float = 0.04, final: float = 1e-4
) -> float:
    """Rises from `start` to 1 at progress `peak`, then falls to `final`, each along half a cosine.

    Source: Smith and Topin 2018 (arXiv:1708.07120), who ramp linearly; the cosine is that of
    torch's OneCycleLR.
    """
    _check_share("progress", progress)
    _check_share("start", start)
    _check_share("final", final)
    if not 0 < peak < 1:
        raise ValueError(f"scheduler.peak must be more than 0 and less than 1; got {peak!r}")
    if progress < peak:
        return _ease(start, 1.0, progress / peak)
    return _ease(1.0, final, (progress - peak) / (1 - peak))


def _ease(begin: float, end: float, share: float) -> float:
    """Returns the point of half a cosine from `begin` to `end` at a share of the way, 0 to 1."""
    return end + (begin - end) * (1 + cos(pi * share)) / 2


def _check_share(name: str, value: float) -> None:
    """Raises ValueError unless a setting of a schedule is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"scheduler.{name} must be a number from 0 to 1; got {value!r}")
