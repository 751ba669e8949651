"""Measures how often a result is right, over many small studies whose truth is known."""

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from studyloom.extras.explain.explain import wilson
from studyloom.winner.statistics import NORMAL

from .studies import KINDS, Outcome, run_study


def honesty(sizes: Sequence[int] | None, trials: int, results: Path | None) -> None:
    """Runs the studies in one process a core, and prints what is true of them.

    Args:
        sizes: how many studies of each kind; None for those of `KINDS`.
        trials: the number of trials of each study.
        results: a folder that keeps what each study found; None for none.
    """
    counts = dict(zip(KINDS, sizes or KINDS.values(), strict=True))
    tasks = [(kind, n, trials) for kind, count in counts.items() for n in range(count)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        outcomes = pool.starmap(run_or_read, [(*task, results) for task in tasks], chunksize=1)
    for kind in (*KINDS, None):
        show(kind or "all", [each for each in outcomes if kind in (each.kind, None)])


def run_or_read(kind: str, seed: int, trials: int, results: Path | None) -> Outcome:
    """Runs a study, unless its outcome is kept."""
    path = None if results is None else results / f"{kind}-{seed}-{trials}.json"
    if path is not None and path.exists():
        return Outcome(**loads(path.read_text()))
    outcome = run_study(kind, seed, trials)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(asdict(outcome)))
    return Outcome(**loads(dumps(asdict(outcome))))


def show(name: str, found: Sequence[Outcome]) -> None:
    """Prints what is true of some studies.

    The width of an exact interval is that of the errors of the differences themselves, without the
    error of the truth.
    """
    won = [each for each in found if each.difference is not None]
    errors = [each.difference["mean"] - (each.truth - each.baseline) for each in won]
    widths = [high - low for low, high in intervals(each.difference for each in won)]
    worse = [each.truth < each.baseline - 1e-9 for each in found]
    print(
        f"\n{name}: {len(found)} studies, in {len(won)} of them another trial won than the baseline"
    )
    tests = [Said(each.test, each.truth, each.errors[0]) for each in found]
    print(f"  the winner's interval has the truth: {covered(tests)}")
    gains = [Said(each.difference, each.truth - each.baseline, each.errors[1]) for each in won]
    print(f"  that of the difference: {covered(gains)}")
    if len(errors) > 1 and widths:
        chance = fmean(each**2 for each in errors) - fmean(each.errors[1] ** 2 for each in won)
        print(f"  its width: {fmean(widths) / (2 * NORMAL * chance**0.5):.2f} of an exact one")
    print(f"  the winner is worse than the baseline: {share(worse)}")
    worse_than_baseline = [each.truth < each.baseline - 1e-9 for each in won]
    print(f"    where another trial won: {share(worse_than_baseline)}")
    promised = [each.searched - each.best for each in found]
    tested = [each.test["mean"] - each.truth for each in found]
    print(f"  the best trial's value in the search minus the truth: {mean(promised)}")
    print(f"  the winner's mean on the test set minus the truth: {mean(tested)}")
    print(f"  winner minus best trial, in truth: {mean([e.truth - e.best for e in found])}")
    print(f"  winner minus baseline, in truth: {mean([e.truth - e.baseline for e in found])}")
    ratios = [after / search for search, after in (each.epochs for each in found)]
    print(f"  epochs after the search, of those of the search: {fmean(ratios):.2f}")


@dataclass(frozen=True)
class Said:
    """A summary as a result has it, and the truth with its standard error."""

    summary: Any
    truth: float
    error: float

    @property
    def is_right(self) -> bool:
        """Whether the interval contains the truth, but for the error of the latter."""
        low, high = self.summary["interval"]
        away = self.truth - self.summary["mean"]
        side = high - self.summary["mean"] if away > 0 else self.summary["mean"] - low
        return away**2 <= side**2 + (NORMAL * self.error) ** 2


def intervals(summaries: Iterable[Any]) -> list[Sequence[float]]:
    """Returns the intervals of those that have one."""
    return [each["interval"] for each in summaries if each["interval"] is not None]


def covered(said: Sequence[Said]) -> str:
    """Formats how many intervals contain the truth, of those that there are."""
    return share([each.is_right for each in said if each.summary["interval"] is not None])


def share(holds: Sequence[bool]) -> str:
    """Formats a share with its 95% interval."""
    count, part = len(holds), sum(holds)
    if not count:
        return "–"
    low, high = wilson(part, count)
    return f"{part / count:.1%} [{low:.1%}, {high:.1%}] of {count}"


def mean(values: Sequence[float]) -> str:
    """Formats a mean with its 95% interval."""
    half = NORMAL * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{fmean(values):+.4f} [{fmean(values) - half:+.4f}, {fmean(values) + half:+.4f}]"
