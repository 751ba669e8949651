"""Earlier studies: which of their trials a study begins with.

Of one study these are the best. Of several they are a portfolio: points that are good together, by
the ranks that trials have in their own studies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from studyloom.question.question import Question
from studyloom.space.tree import Point, is_ordered, place_in
from studyloom.study.placing import PlacedPoint, place_point
from studyloom.study.portfolio import EarlierStudy, choose_points, rank_scores

AUTO = "auto"  # the value of study.from that looks for earlier studies
# Trials of a study that may be chosen for a portfolio. With all 40, portfolios were worse by .01 on
# HPOBench: an estimate can be wrong about a point that its own study found bad.
CANDIDATES = 10
MOST_PLACED = 2000  # trials of all studies that are placed in the space, at 1 ms each


@dataclass(frozen=True)
class Earlier:
    """An earlier study, as it was read.

    Attributes:
        label: names it for people, without a password: "runs/earlier".
        ranked: the trials that may be taken, the best first.
        behind: trials that are worse than all of these, such as pruned ones.
        open: how many of its trials are yet to be done.
        uuid: tells whether two sources are one study; None if it has none.
    """

    label: str
    ranked: Sequence[FrozenTrial]
    behind: Sequence[FrozenTrial] = ()
    open: int = 0
    uuid: str | None = None


@dataclass(frozen=True)
class WarmStart:
    """A point to begin with.

    Attributes:
        point: in the space of the study.
        source: where it comes from, for people: "study.enqueue[0]", "runs/earlier, trial 7".
        taken: whether it is a trial of an earlier study.
    """

    point: Point
    source: str
    taken: bool = False


def take_points(
    question: Question, studies: Sequence[Earlier], top: int, notes: list[str], *, looked: bool
) -> list[WarmStart]:
    """Chooses trials of earlier studies that are points of this study's space too.

    Args:
        question: of the study.
        studies: the earlier studies. Of one alone the best trials are taken.
        top: how many points to take, at most.
        notes: lines for the user, which grow.
        looked: whether these are studies that nobody has named, of which many may not fit.
    """
    if len(studies) == 1 and not looked:
        return _best_points(question, studies[0], top, notes)
    most = max(2 * CANDIDATES, MOST_PLACED // max(1, len(studies)))
    placed = [(earlier, _place_study(question, earlier, top, most)) for earlier in studies]
    names: dict[str, BaseDistribution] = {}
    for _, trials in placed:
        for each in trials:
            names |= each.placed.point.distributions
    tables = [_coordinates(trials, names) for _, trials in placed]
    categorical = np.array([not is_ordered(each) for each in names.values()], dtype=bool)
    chosen: dict[int, list[PlacedTrial]] = {}
    starts: list[WarmStart] = []
    for number, row in choose_points(tables, categorical, top):
        earlier, trials = placed[number]
        trial = trials[row]
        chosen.setdefault(number, []).append(trial)
        source = f"{earlier.label}, trial {trial.number}"
        starts.append(WarmStart(trial.placed.point, source, taken=True))
    for number, (earlier, trials) in enumerate(placed):
        if number in chosen:
            taken = chosen[number]
            notes.append(_note_taken(earlier, [(each.number, each.placed) for each in taken]))
        elif not trials and not looked:
            notes.append(f"{earlier.label}: none of its trials fits this space")
    if looked and not starts:
        notes.append(f"study.from={AUTO}: no earlier study has a point of this space; it goes on")
    return starts


@dataclass(frozen=True)
class PlacedTrial:
    """A trial of an earlier study, placed in the space.

    Attributes:
        number: of the trial.
        placed: where it lies.
        score: its rank in its study, from 0 to 1.
        eligible: whether it may be taken.
    """

    number: int
    placed: PlacedPoint
    score: float
    eligible: bool


def _place_study(question: Question, earlier: Earlier, top: int, most: int) -> list[PlacedTrial]:
    """Places trials of an earlier study, except for those that have no place in the space.

    Args:
        question: of the study that begins.
        earlier: the earlier study.
        top: how many points are taken, at most.
        most: how many trials are placed: of more, the best and others at even distances.
    """
    trials = [*earlier.ranked, *earlier.behind]
    scores = rank_scores(len(earlier.ranked), len(earlier.behind))
    baseline = None if question.baseline is None else question.baseline.params
    rows = [*range(len(trials))]
    if len(rows) > most:
        rest = np.linspace(CANDIDATES, len(trials) - 1, most - CANDIDATES)
        rows = [*rows[:CANDIDATES], *rest.round().astype(int).tolist()]
    placed: list[PlacedTrial] = []
    for row in rows:
        try:
            at = place_point(question, trials[row].params)
        except Exception:  # a name that no key can have, in what somebody else has written
            continue
        if not at.wrong and len(at.composed) < len(at.point.params):
            few = sum(each.eligible for each in placed) < max(CANDIDATES, top)
            eligible = few and row < len(earlier.ranked) and at.point.params != baseline
            placed.append(PlacedTrial(trials[row].number, at, float(scores[row]), eligible))
    return placed


def _coordinates(
    trials: Sequence[PlacedTrial], names: Mapping[str, BaseDistribution]
) -> EarlierStudy:
    """Turns placed trials into rows of numbers, a column for each parameter of the space."""
    points = np.full((len(trials), len(names)), np.nan)
    columns = {name: column for column, name in enumerate(names)}
    for row, trial in enumerate(trials):
        for name, value in trial.placed.point.params.items():
            points[row, columns[name]] = place_in(names[name], value)
    scores = np.array([trial.score for trial in trials])
    return EarlierStudy(points, scores, np.array([t.eligible for t in trials], dtype=bool))


def _best_points(
    question: Question, earlier: Earlier, top: int, notes: list[str]
) -> list[WarmStart]:
    """Returns the best trials of an earlier study that are points of this study's space too."""
    label = earlier.label
    taken: list[tuple[int, PlacedPoint]] = []
    for trial in earlier.ranked:
        if len(taken) == top:
            break
        placed = place_point(question, trial.params)
        if placed.wrong:
            notes.append(f"{label}: trial {trial.number} does not fit: {'; '.join(placed.wrong)}")
            continue
        taken.append((trial.number, placed))
    if taken:
        notes.insert(0, _note_taken(earlier, taken))
    else:
        notes.append(f"{label}: none of its trials fits this space")
    return [
        WarmStart(placed.point, f"{label}, trial {number}", taken=True) for number, placed in taken
    ]


def _note_taken(earlier: Earlier, taken: Sequence[tuple[int, PlacedPoint]]) -> str:
    """Words which trials of an earlier study are tried first, and how they differ here."""
    differences: dict[str, None] = {}
    for _, placed in taken:
        differences |= dict.fromkeys(f"{name} has its composed value" for name in placed.composed)
        differences |= dict.fromkeys(f"{name} is not searched here" for name in placed.unasked)
    numbers = ", ".join(str(number) for number, _ in taken)
    return "; ".join([f"{earlier.label}: begins with its trials {numbers}", *differences])
