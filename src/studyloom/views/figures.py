"""The figures of the reports, as charts: scales, marks, and a table of the same values.

A chart contains no HTML. `page` draws it as SVG that stretches to its width, without script,
network or images of several sizes. The function of a figure returns a chart, or a sentence that
says why there is nothing to draw yet. `trials` are those of a study, by number; `marked` ones are
highlighted.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from statistics import median

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from studyloom.metrics import METRICS
from studyloom.storage.stored_study import StoredStudy, quantities, value_of
from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, shown_state
from studyloom.text import (
    format_cost,
    format_duration,
    format_parameter,
    format_value,
    shorten,
)
from studyloom.winner.result import Ablation, Predictions, Result

SIZE = 1000  # units of the drawing along each axis
NARROW, ROOMY = 280, 860  # pixels of an axis on a phone, and on a wide screen
LETTER, GAP = 7.2, 8  # pixels of a label's letter, and between two labels
LINE = 22  # pixels between the labels of a vertical axis
ROUNDING = 1e-6  # of a value; numbers that are closer differ by rounding, also in single precision

Point = tuple[float, float]
Part = Sequence[Point]  # one connected line, or a single dot


class Block:
    """A piece of a report."""


@dataclass(frozen=True)
class PageTable(Block):
    """A table of a report, with a note below it.

    Args:
        words: the columns of words; the others are aligned as numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Tick:
    """A label of an axis; `when` is `narrow` or `roomy` for those screens, empty for both."""

    at: float
    label: str
    when: str = ""


@dataclass(frozen=True)
class ChartScale:
    """An axis: its coordinates and labels.

    Args:
        reads: how the script computes a value from a coordinate: `plain`, `whole` (rounded),
            `tens` (10 to that power), `unit` (the distance to 1 in factors of ten), `words` (the
            one at that place), or `none`.
    """

    low: float
    high: float
    ticks: Sequence[Tick] = ()
    title: str = ""
    reads: str = "plain"
    words: Sequence[str] = ()

    def place(self, at: float) -> float:
        """Returns where a coordinate is drawn, from 0 to SIZE."""
        span = self.high - self.low
        return SIZE * (at - self.low) / span if span else SIZE / 2

    def share(self, at: float) -> str:
        """Returns where a coordinate is drawn, in percent."""
        return f"{100 * self.place(at) / SIZE:.2f}"

    def edge(self, tick: Tick) -> str:
        """Returns the class of a long label at an end of the axis, which must not stick out."""
        place = self.place(tick.at) / SIZE
        if len(tick.label) < 5 or 0.04 < place < 0.96:
            return ""
        return " first" if place < 0.5 else " last"

    @property
    def reading(self) -> Mapping[str, object]:
        """The data from which the script computes values on the scale."""
        ends = {"low": self.low, "high": self.high, "title": self.title}
        return ends | {"reads": self.reads, "words": self.words}


@dataclass(frozen=True)
class Mark:
    """Lines or dots of one kind.

    Args:
        shape: `line`, `dot`, `square`, `ring`, `rug` (a short upright line) or `bar` (a part is its
            two lower corners, `width` its height).
        parts: the coordinates; a part is a line or one dot.
        trials: the number of the trial of each part; None for parts that are not trials.
        style: `dotted`, `stepped`, `faint` or `quiet`, or several of them.
    """

    name: str
    color: str
    shape: str
    parts: Sequence[Part]
    trials: Sequence[int | None] = ()
    width: float = 8
    style: Sequence[str] = ()


def points(
    name: str, color: str, places: Mapping[int, Point], width: float = 8, shape: str = "dot"
) -> Mark:
    """Returns a dot for each trial, by the trial's number."""
    return Mark(name, color, shape, [[at] for at in places.values()], [*places], width)


def dotted(name: str, color: str, ends: Part, width: float = 1) -> Mark:
    return Mark(name, color, "line", [ends], width=width, style=("dotted",))


@dataclass(frozen=True)
class Note:
    """A few words to the `right` or `left` of a position in a chart, or `above` it."""

    x: float
    y: float
    words: str
    side: str = "right"


@dataclass(frozen=True)
class Chart(Block):
    """Marks between two axes, and a table of the same values."""

    label: str
    height: int
    x: ChartScale
    y: ChartScale
    marks: Sequence[Mark]
    table: PageTable
    notes: Sequence[Note] = ()

    def names(self) -> list[str]:
        """Returns the names of its marks."""
        return [mark.name for mark in self.marks if mark.name]

    @property
    def gutter(self) -> int:
        """The pixels that the labels of its vertical axis take."""
        longest = max((len(tick.label) for tick in self.y.ticks), default=0)
        return round(LETTER * longest + 8) if longest else 2

    def is_read(self, mark: Mark) -> bool:
        """Whether the pointer reads the values of a mark."""
        still = {"dotted", "stepped"}
        return bool(mark.trials or (mark.name and not still & {*mark.style}))

    def path(self, mark: Mark, wide: float = SIZE, high: float = SIZE) -> str:
        """Returns a mark as the data of an SVG path, in an area so wide and high."""
        return "".join(self._part(mark, part, wide, high) for part in mark.parts)

    def _part(self, mark: Mark, part: Part, wide: float, high: float) -> str:
        places = [
            (wide * self.x.place(x) / SIZE, high * (1 - self.y.place(y) / SIZE)) for x, y in part
        ]
        (x, y), *others = places
        start = f"M{_digits(x)} {_digits(y)}"
        if mark.shape == "bar":
            length = _digits(max(others[0][0] - x, 0.6))  # a bar of no duration is visible too
            height = _digits(mark.width * high / (self.y.high - self.y.low))
            return f"{start}h{length}v-{height}h-{length}z"
        if mark.shape == "rug":
            return f"M{_digits(x)} {_digits(y - 0.016 * high)}v{_digits(0.032 * high)}"
        if mark.shape != "line" or not others:  # a curve of one epoch is a dot
            return "".join(f"M{_digits(x)} {_digits(y)}h.01" for x, y in places)
        corner = "H{}V{}" if "stepped" in mark.style else "L{} {}"
        return start + "".join(corner.format(_digits(x), _digits(y)) for x, y in others)


def _digits(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Multiples(Block):
    """Small charts side by side, each below its title."""

    charts: Mapping[str, Chart] = field(default_factory=dict)


def spaced(
    ticks: Sequence[Tick], low: float, high: float, pixels: float, *, upright: bool = False
) -> Sequence[Tick]:
    """Drops labels, which have ascending coordinates, until no two overlap."""
    scale = pixels / ((high - low) or 1)

    def is_clear(left: Tick, right: Tick) -> bool:
        width = LETTER * (len(left.label) + len(right.label)) / 2 + GAP
        return (right.at - left.at) * scale >= (LINE if upright else width)

    ends = ticks[:: max(1, len(ticks) - 1)]
    for kept in (*(ticks[::every] for every in range(1, len(ticks))), ends):
        if all(itertools.starmap(is_clear, itertools.pairwise(kept))):
            return kept
    return ticks[:1]


def responsive(
    ticks: Sequence[Tick], low: float, high: float, pixels: float | None = None
) -> Sequence[Tick]:
    """Returns the labels of a horizontal axis: fewer on a phone than on a wide screen.

    Args:
        pixels: the length of the axis, if it is the same on all screens.
    """
    if pixels is not None:
        return spaced(ticks, low, high, pixels)
    narrow, roomy = (spaced(ticks, low, high, pixels) for pixels in (NARROW, ROOMY))
    whens = {(True, True): "", (True, False): "narrow", (False, True): "roomy"}
    shown = [(tick, (tick in narrow, tick in roomy)) for tick in ticks]
    return [replace(tick, when=whens[on]) for tick, on in shown if any(on)]


def is_one_value(low: float, high: float) -> bool:
    """Whether two numbers, the lower one first, are equal up to rounding."""
    return high - low <= ROUNDING * max(abs(low), abs(high))


def tick_labels(marks: Sequence[float], digits: int) -> list[str]:
    """Returns a label for each mark, with at least so many digits, and as many as differ."""
    labels: list[str] = []
    for count in range(digits, 17):
        labels = [f"{mark:.{count}g}" for mark in marks]
        if len({*labels}) == len({*marks}):
            break
    return labels


def whole_scale(low: float, high: float, title: str = "") -> ChartScale:
    """Returns a horizontal axis of integers, with integer labels."""
    margin = 0.03 * (high - low) + 0.3
    ends = low - margin, high + margin
    steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= 12)
    first = math.ceil(low / step) * step
    ticks = [Tick(at, str(at)) for at in range(first, math.floor(high) + 1, step)]
    return ChartScale(*ends, responsive(ticks, *ends), title, "whole")


def round_marks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers between two; only the lower one if they are one value."""
    if is_one_value(low, high):
        return [low]
    exponent = math.floor(math.log10((high - low) / count))
    power = 10.0**exponent
    step = next(s * power for s in (1, 2, 5, 10) if (high - low) / (s * power) <= count)
    found = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    if len(found) < 2:  # one number on an axis gives no measure
        return round_marks(low, high, count + 1)
    return [round(n * step, -exponent) for n in found]


def plain_scale(
    values: Sequence[float], title: str = "", *, upright: bool = False, height: int = 300
) -> ChartScale:
    """Returns an axis of numbers, at least one, with round labels."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low)
    if is_one_value(low, high):
        margin = 0.05 * max(1.0, abs(high))
    ends = low - margin, high + margin
    marks = round_marks(*ends, 6)
    ticks = [*map(Tick, marks, tick_labels(marks, 4))]
    shown = spaced(ticks, *ends, height, upright=True) if upright else responsive(ticks, *ends)
    return ChartScale(*ends, shown, title)


def log_scale(values: Sequence[float], title: str = "", pixels: float | None = None) -> ChartScale:
    """Returns a horizontal axis of values above 0 on which equal steps are equal factors.

    Args:
        pixels: its length, if it is the same on all screens.
    """
    single = is_one_value(min(values), max(values))
    low = math.log10(min(values))
    high = math.log10(max(values))
    margin = 0.1 if single else 0.05 * (high - low)
    ends = low - margin, high + margin
    ticks = [Tick(math.log10(mark), f"{mark:.3g}") for mark in log_marks(min(values), max(values))]
    shown = responsive(ticks, *ends, pixels)
    if len(shown) < 2 and not single:  # the range lies between two round numbers
        shown = [Tick(at, f"{10**at:.2g}") for at in (low, high)]
    return ChartScale(*ends, shown, title, "tens")


def log_marks(low: float, high: float) -> list[float]:
    """Returns two to four round numbers between two values, powers of ten first; else the two."""
    digits = (1,) if high >= 100 * low else (1, 3)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{digit * 10.0**power:.10g}") for power in powers for digit in digits]
    marks = [mark for mark in marks if low <= mark <= high]
    if len(marks) < 2:
        marks = round_marks(low, high, 4)
    if len(marks) < 2:
        marks = sorted({low, high})
    return marks[:: math.ceil(len(marks) / 4)]


LEAST = {"unit": 1e-4, "factors": 1e-12}  # the error, or the value, at which an axis ends


@dataclass(frozen=True)
class Axis:
    """The axis of a metric's values.

    Args:
        scale: `unit` is logarithmic in the distance to 1, so that 0.99 is as far above 0.9 as 0.9
            is above 0; trials that learn nothing would otherwise squeeze all the others into the
            top tenth. `factors` is logarithmic in the value, and `plain` linear.
    """

    metric: str
    scale: str
    sign: int

    @classmethod
    def of(cls, metric: str, sign: int, values: Collection[float]) -> "Axis":
        """Returns the axis of a metric, by its name and finite values.

        The scale of an unknown metric is `factors` if less is better and its values, all above 0,
        differ by more than a factor of ten; otherwise it is `plain`. A metric is unknown if the
        known one of its name cannot have all of its values.
        """
        known, scale = METRICS.get(metric), "plain"
        if known is not None and known.sign == sign and all(map(known.can_be, values)):
            scale = known.scale
        if scale == "plain" and sign < 0 and 0 < 10 * min(values, default=0) < max(values):
            scale = "factors"
        return cls(metric, scale, sign)

    def height(self, value: float) -> float:
        """Returns the coordinate at which a value is drawn."""
        if self.scale == "plain":
            return value
        rest = 1.0 - value if self.scale == "unit" else value
        tens = math.log10(max(rest, LEAST[self.scale]))
        return -tens if self.scale == "unit" else tens

    def near(self, values: Collection[float]) -> list[float]:
        """Returns the values, without those far worse than the best nine tenths.

        The best nine tenths then take at least a third of the axis.
        """
        ordered = sorted(values, key=lambda value: -self.sign * value)
        best = ordered[0]
        last = ordered[math.ceil(0.9 * len(ordered)) - 1]
        most = 3 * abs(self.height(last) - self.height(best))

        def is_near(value: float) -> bool:
            if is_one_value(*sorted((value, best))):
                return True
            return abs(self.height(value) - self.height(best)) <= most

        return [value for value in ordered if is_near(value)]

    def marks(self, low: float, high: float) -> list[float]:
        """Returns some round values between `low` and `high`, or only `low` without any."""
        marks: list[float] = []
        if self.scale == "unit":
            digits = [digit * 10.0**-power for power in range(5) for digit in (5, 3, 2, 1)]
            marks = [mark for rest in digits if low <= (mark := round(1 - rest, 10)) <= high]
        elif self.scale == "factors" and low > 0:
            marks = log_marks(low, high)
        return marks if len(marks) >= 3 else round_marks(low, high, 8)

    def scale_of(self, values: Collection[float], height: int) -> ChartScale:
        """Returns the vertical axis for some values."""
        low, high = min(values), max(values)
        bottom, top = self.height(low), self.height(high)
        margin = 0.06 * (top - bottom)
        if bottom == top or is_one_value(low, high):
            margin = 0.05 * max(1.0, abs(top))
        ends = bottom - margin, top + margin
        marks = self.marks(low, high)
        ticks = [*map(Tick, map(self.height, marks), tick_labels(marks, 6))]
        shown = spaced(ticks, *ends, height, upright=True)
        reads = {"unit": "unit", "factors": "tens", "plain": "plain"}[self.scale]
        return ChartScale(*ends, shown, self.metric, reads)


# The figures of a study

ENOUGH = 3  # complete trials that must have a hyperparameter before it is drawn
NO_PARAMETERS = f"No hyperparameter has had different values in {ENOUGH} complete trials yet."
NOTHING_COMPLETE = "No trial is complete yet."
NO_VALUE = "No trial has a value yet."
# The width of a trial's mark in the history, by its outcome: small ones are squares, of trials that
# ended early, are paused or interrupted. The last are on top.
HISTORY = {"failed": 4, "pruned": 4, "paused": 5, "complete": 8, INTERRUPTED: 7, "running": 9}
COLORS = {INTERRUPTED: "running"}  # of a state that shares the color of another
MANY = 400  # trials, whose marks are smaller
BINS = 4  # of a hyperparameter's settings, in the table behind its figure
LINES = ("complete", "baseline", "running", "failed", "pruned")  # colors of further quantities
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
STUDIES = ("complete", "failed", "best", "baseline", "running", "paused", "pruned")  # colors
MOST_STUDIES = len(STUDIES)  # more lines cannot be distinguished
MOST_BEST, MOST_LATEST = 100, 200  # curves that are drawn; more are one stain
CURVE_ROWS, EXAMPLE_ROWS = 60, 40  # of the tables
SPREAD = 10.0  # costs that differ by more than this factor are drawn on a logarithmic axis
MOST_CHOICES = 5  # of a number, each has a label
SHADES = 5  # of a ramp from gray to blue
SMALL, PAIR_HEIGHT = 170, 360  # pixels
PHONE = 124  # pixels of a small chart's axis on a phone, where two share a row
LETTERS = 24  # in the labels of all choices together, on a small chart
ROW, BAR = 44, 0.32  # pixels of a worker's bar with its label above it, and the bar's share of them

Curve = Sequence[tuple[int, float]]  # epochs, and the value after each; a loop may begin at 0
Span = tuple[FrozenTrial, datetime, datetime]  # a trial, its start and its end
Marked = Mapping[str, FrozenTrial | None]  # `baseline`, `best` and, of a front, `winner`


def complete_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the complete trials whose value is a finite number."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and math.isfinite(value_of(trial) or 0.0)
    ]


def last_values(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Returns the value of each complete trial, and the last finite one that others reported."""
    known = {trial.number: _value(trial) for trial in complete_trials(trials)}
    for trial in trials:
        values = [value for _, value in learning_curve(trial) if _is_finite(value)]
        if values and trial.state != TrialState.COMPLETE:
            known[trial.number] = values[-1]
    return known


def ended_early(trials: Sequence[FrozenTrial]) -> dict[str, dict[int, float]]:
    """Returns the last value of each trial that was pruned or is paused, by outcome and number."""
    values, known = last_values(trials), dict[str, dict[int, float]](pruned={}, paused={})
    for trial in trials:
        if trial.number in values and (kind := TrialRecord(trial).outcome) in known:
            known[kind][trial.number] = values[trial.number]
    return known


def learning_curve(trial: FrozenTrial) -> Curve:
    """Returns the learning curve that a trial stored, or else the values that it reported."""
    columns = TrialRecord(trial).curve
    return list(zip(columns.get("number", ()), columns.get("value", ()), strict=False))


def best_so_far(complete: Sequence[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Returns the trials that were better than all feasible trials before them."""
    steps: list[FrozenTrial] = []
    for trial in complete:
        feasible = all(broken <= 0 for broken in (trial.constraints or {}).values())
        if feasible and (not steps or sign * _value(trial) > sign * _value(steps[-1])):
            steps.append(trial)
    return steps


def _value(trial: FrozenTrial) -> float:
    return value_of(trial) or 0.0


def _label(setting: object, length: int = 24) -> str:
    return shorten(format_parameter(setting), length)


def _is_number(setting: object) -> bool:
    return isinstance(setting, int | float) and not isinstance(setting, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _order(setting: object) -> tuple[str, float, str]:
    """Sorts numbers by size, and other settings after them by type and name."""
    if isinstance(setting, int | float):
        return "", float(setting), str(setting)
    return type(setting).__name__, 0.0, str(setting)


def _drawn(marks: Sequence[Mark]) -> list[Mark]:
    return [mark for mark in marks if mark.parts]


def _left_out(rows: Sequence[object], of: int, what: str) -> str:
    left = of - len(rows)
    return f"{left} further {what} are left out." if left else ""


def summary(trials: Sequence[FrozenTrial], name: str, sign: int) -> PageTable:
    """Returns the values of complete trials by their setting of a hyperparameter."""
    ordered = sorted(trials, key=lambda trial: _order(trial.params[name]))
    distinct = list(dict.fromkeys(trial.params[name] for trial in ordered))
    groups: list[tuple[str, list[FrozenTrial]]] = []
    if len(distinct) <= 2 * BINS or not all(map(_is_number, distinct)):
        for setting in distinct:
            members = [trial for trial in trials if trial.params[name] == setting]
            groups.append((_label(setting, 60), members))
    else:
        ends = [len(ordered) * part // BINS for part in range(BINS + 1)]
        for low, high in itertools.pairwise(ends):
            first, last = (_label(ordered[at].params[name]) for at in (low, high - 1))
            groups.append((f"{first} to {last}", ordered[low:high]))
    rows = []
    for label, members in groups:
        values = sorted(map(_value, members), key=lambda value: -sign * value)
        rows.append((label, len(members), format_value(values[0]), format_value(median(values))))
    return PageTable((name, "complete trials", "best", "median"), rows, words=(0,))


def history(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    winner: Result | None = None,
    alive: Collection[int] | None = None,
) -> Chart | str:
    """Draws each trial at its last value, the best so far, and the winner's values on new seeds.

    A stroke at the edge is a trial far worse than the others, one at the bottom has no value.
    """
    values, height = last_values(trials), 320
    if not values:
        return NO_VALUE
    kinds = {trial.number: shown_state(trial, alive) for trial in trials}
    later = {} if winner is None else winner.new_values(axis.metric)
    ends = [end for found in later.values() for end in found.mean_and_error]
    y = axis.scale_of([*axis.near(values.values()), *ends], height)
    heights = {n: min(max(axis.height(value), y.low), y.high) for n, value in values.items()}
    near = {n for n, value in values.items() if heights[n] == axis.height(value)}
    bottom, last = y.low - 0.05 * (y.high - y.low), max(kinds)
    if any(number not in values and kind in HISTORY for number, kind in kinds.items()):
        y = replace(y, low=2 * bottom - y.low)
    x = whole_scale(0, last, "trial")
    edge, step = x.high, 0.035 * (x.high - x.low)
    x = replace(x, high=edge + step * len(later))

    marks = []
    for kind, width in HISTORY.items():
        size = width if len(kinds) <= MANY else 0.6 * width
        shape = "square" if width < 8 else "dot"
        own = {n: (n, heights.get(n, bottom)) for n, its in kinds.items() if its == kind}
        shown = {n: place for n, place in own.items() if n in near}
        strokes = {n: place for n, place in own.items() if n not in near}
        color = COLORS.get(kind, kind)
        marks.append(points(kind, color, shown, size, shape=shape))
        marks.append(points("" if shown else kind, color, strokes, 2, shape="rug"))
    steps = best_so_far(complete_trials(trials), axis.sign)
    line = [(trial.number, heights[trial.number]) for trial in steps if trial.number in near]
    ended = [[*line, (last, line[-1][1])]] if line else []
    marks.append(Mark("best so far", "best", "line", ended, width=2, style=("stepped",)))
    start = value_of(marked["baseline"])
    if start is not None and y.low <= axis.height(start) <= y.high:
        across = [(at, axis.height(start)) for at in (x.low, x.high)]
        marks.append(dotted("baseline", "baseline", across, 1.5))
    name, best = "best", marked["best"]
    ringed = None if best is None else best.number
    if winner is not None:
        name, ringed = "winner", winner.winner.trial
    if ringed is not None and ringed in near:
        marks.append(points(name, name, {ringed: (ringed, heights[ringed])}, 13, shape="ring"))
    for place, (name, found) in enumerate(later.items()):  # to the right of the trials
        at = edge + step * place
        bar = [(at, axis.height(end)) for end in found.mean_and_error]
        marks.append(Mark("", "winner", "line", [bar], width=2))
        shape = "square" if name == "test" else "dot"
        marks.append(Mark(name, "winner", shape, [[(at, axis.height(found.mean))]]))
    rows = [(trial.number, format_value(_value(trial))) for trial in steps]
    note = "" if start is None else f"The baseline has {format_value(start)}."
    table = PageTable(("from trial", f"best {axis.metric} so far"), rows, note=note)
    label = f"{axis.metric} of {len(values)} trials, in the order in which they began"
    return Chart(label, height, x, y, _drawn(marks), table)


def finite_curves(trials: Sequence[FrozenTrial]) -> dict[int, Curve]:
    """Returns the learning curves whose values are finite numbers, by trial."""
    every = {trial.number: learning_curve(trial) for trial in trials}
    return {n: c for n, c in every.items() if c and all(_is_finite(value) for _, value in c)}


def curves(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    alive: Collection[int] | None = None,
) -> Chart | str:
    """Draws the learning curves, as one mark for each outcome; of many, the best and the latest."""
    height, every = 360, finite_curves(trials)
    if not every:
        return "No trial has ended an epoch yet."
    special = {trial.number for trial in marked.values() if trial is not None}
    ranked = sorted(every, key=lambda number: -axis.sign * every[number][-1][1])
    chosen = {*ranked[:MOST_BEST], *[*every][-MOST_LATEST:], *special}
    known = {number: curve for number, curve in every.items() if number in chosen}
    heights = {n: [(e, axis.height(value)) for e, value in curve] for n, curve in known.items()}
    kinds = {trial.number: shown_state(trial, alive) for trial in trials}

    def lines(name: str, numbers: Sequence[int], width: float, style: Sequence[str] = ()) -> Mark:
        parts = [heights[number] for number in numbers]
        color = COLORS.get(name, name)
        if all(len(part) == 1 for part in parts):  # a single epoch needs some width
            return Mark(name, color, "dot", parts, numbers, 7, style)
        return Mark(name, color, "line", parts, numbers, width, style)

    marks = []
    for kind in (
        "failed",
        "pruned",
        "paused",
        INTERRUPTED,
        "running",
        "complete",
    ):  # the last is on top
        own = [n for n in heights if kinds[n] == kind and n not in special]
        marks.append(lines(kind, own, 1.3, ("faint",)))
        if kind in ("failed", "pruned", "paused", INTERRUPTED):
            ends = {number: heights[number][-1] for number in own}
            marks.append(points("", COLORS.get(kind, kind), ends, 5, shape="square"))
    for name, trial in marked.items():
        own = [trial.number] if trial is not None and trial.number in heights else []
        marks.append(lines(name, own, 3))
    y = axis.scale_of([value for curve in known.values() for _, value in curve], height)
    epochs = [epoch for curve in known.values() for epoch, _ in curve]
    x = whole_scale(min(1, *epochs), max(epochs), "epoch")
    for rung in sorted({rung for trial in trials for rung in TrialRecord(trial).rungs}):
        marks.append(dotted("", "paused", [(rung, y.low), (rung, y.high)]))
    rows = []
    for number in ranked[:CURVE_ROWS]:
        values = [value for _, value in every[number]]
        top = max(values, key=lambda value: axis.sign * value)
        shown = (format_value(value) for value in (values[0], top, values[-1]))
        rows.append((number, kinds[number], len(values), *shown))
    head = ("trial", "state", "epochs", "first", "best", "last")
    table = PageTable(head, rows, words=(1,), note=_left_out(rows, len(ranked), "trials"))
    label = f"{axis.metric} after each epoch, of {len(known)} of {len(every)} trials"
    return Chart(label, height, x, y, _drawn(marks), table)


def losses_section(trial: FrozenTrial | None) -> str:
    """Names the section of the figure that `losses` draws."""
    further = trial is not None and {*quantities([trial])} - {*LOSSES}
    return "quantities" if further else "losses"


def losses(trial: FrozenTrial) -> Chart | str:
    """Draws the training and validation loss of a trial, epoch by epoch.

    For a custom training loop it draws all that the loop reported next to the value.
    """
    epochs, height = TrialRecord(trial).curve, 280
    numbers, names = epochs.get("number") or [], quantities([trial])
    columns = {
        name: [(n, v) for n, v in zip(numbers, epochs[name], strict=False) if _is_finite(v)]
        for name in names
    }
    values = [value for column in columns.values() for _, value in column]
    if not values or any(len(epochs[name]) != len(numbers) for name in names):
        return f"Trial {trial.number} stored no losses."
    marks, notes = [], []
    for position, (name, column) in enumerate(columns.items()):
        color = "best" if name in LOSSES else LINES[position % len(LINES)]
        style = ("dotted",) if name == "train_loss" else ()
        shape, width = ("line", 2.5) if len(column) > 1 else ("dot", 8)
        parts = [column] if column else []
        marks.append(Mark(LOSSES.get(name, name), color, shape, parts, (), width, style))
    y = plain_scale([0.0, *values], upright=True, height=height)
    title = "loss" if {*names} <= {*LOSSES} else ""
    y = replace(y, low=min(0.0, y.low if min(values) < 0 else 0.0), title=title)
    x = whole_scale(numbers[0], numbers[-1], "epoch")
    if {*names} == {*LOSSES} and len(columns["valid_loss"]) > 1:
        epoch, _ = min(columns["valid_loss"], key=lambda pair: pair[1])
        marks.append(dotted("", "pruned", [(epoch, y.low), (epoch, y.high)]))
        side = "left" if epoch > (numbers[0] + numbers[-1]) / 2 else "right"
        notes.append(Note(epoch, y.high, f"lowest at epoch {epoch}", side))
    rows = [
        (number, *(format_value(v) if _is_finite(v) else "" for v in row))
        for number, *row in zip(numbers, *(epochs[name] for name in names), strict=True)
    ]
    called = [LOSSES.get(name, name) for name in names]
    label = f"{', '.join(called)} of trial {trial.number} by epoch"
    return Chart(label, height, x, y, _drawn(marks), PageTable(("epoch", *called), rows), notes)


def front(stored: StoredStudy, marked: Marked, axis: Axis, table: PageTable) -> Chart | str:
    """Draws each complete trial by cost and value, including those that violate a constraint.

    Args:
        table: of the trials on the front.
    """
    trials = [trial for trial in complete_trials(stored.trials()) if len(trial.values or ()) > 1]
    if not trials:
        return NOTHING_COMPLETE
    cost, height, costs = stored.goals[1], 340, [trial.values[1] for trial in trials]
    title = f"{cost.name}, {'more' if cost.sign > 0 else 'less'} is better"
    logarithmic = 0 < SPREAD * min(costs) < max(costs)
    x = (log_scale if logarithmic else plain_scale)(costs, title)
    # With the digits that a rule accepts.
    ticks = [
        replace(tick, label=format_cost(10**tick.at if logarithmic else tick.at), when="")
        for tick in x.ticks
    ]
    x = replace(x, ticks=responsive(ticks, x.low, x.high))

    def at(trial: FrozenTrial) -> Point:
        value, spent = trial.values[:2]
        return (math.log10(spent) if logarithmic else spent), axis.height(value)

    places = {trial.number: at(trial) for trial in trials}
    feasible = {trial.number for trial in stored.feasible()}
    ahead = {trial.number for trial in stored.front()}
    beaten = {n: place for n, place in places.items() if n in feasible - ahead}
    infeasible = {n: place for n, place in places.items() if n not in feasible}
    front = {n: place for n, place in places.items() if n in ahead}
    steps, size = [sorted(front.values())], 8 if len(trials) <= MANY else 4.8
    marks = [
        Mark("staircase", "best", "line", steps, width=1.5, style=("stepped", "quiet")),
        points("infeasible", "failed", infeasible, shape="square"),
        points("beaten", "complete", beaten, size),
        points("front", "best", front),
    ]
    for name, trial in marked.items():
        if trial is not None and trial.values:
            wide = 20 if name == "winner" else 14  # the winner may be the best: around its ring
            marks.append(points(name, name, {trial.number: at(trial)}, wide, shape="ring"))
    y = axis.scale_of([trial.values[0] for trial in trials], height)
    label = f"{axis.metric} over {cost.name}, of {len(trials)} complete trials"
    return Chart(label, height, x, y, _drawn(marks), table)


def setting_scale(
    trials: Sequence[FrozenTrial], name: str, pixels: float | None = None
) -> tuple[ChartScale, list[float]]:
    """Returns the axis of a hyperparameter, with choices at 0, 1, …, and each trial's coordinate.

    Args:
        trials: at least one; all have the hyperparameter.
        pixels: the length of the axis, if it is the same on all screens.
    """
    settings, asked = [trial.params[name] for trial in trials], trials[0].distributions[name]
    choices = list(dict.fromkeys(sorted(settings, key=_order)))
    if isinstance(asked, CategoricalDistribution) or not all(map(_is_number, settings)):
        letters = (LETTERS if pixels is not None else 4 * LETTERS) // len(choices) - 1
        ticks = [Tick(at, _label(choice, max(3, letters))) for at, choice in enumerate(choices)]
        ends = -0.5, len(choices) - 0.5
        shown = responsive(ticks, *ends, pixels)
        scale = ChartScale(*ends, shown, name, "words", [*map(_label, choices)])
        places = {choice: float(at) for at, choice in enumerate(choices)}
        return scale, [places[setting] for setting in settings]
    whole = all(isinstance(setting, int) for setting in settings)
    few = len(choices) <= MOST_CHOICES and (whole or getattr(asked, "step", None) is not None)
    logarithmic = getattr(asked, "log", False) and min(settings) > 0
    place: Callable[[float], float] = math.log10 if logarithmic else float
    scale = log_scale(settings, name, pixels) if logarithmic else plain_scale(settings, name)
    marks = choices if few else []
    if not logarithmic and not few and (whole or pixels is not None):
        marks = round_marks(min(settings), max(settings), 5 if pixels is None else 3)
        marks = [at for at in marks if not whole or at == int(at)]
    if marks:
        digits = ".0f" if whole and pixels is None else ".4g"
        ticks = [Tick(place(at), format(at, digits)) for at in marks]
        scale = replace(scale, ticks=responsive(ticks, scale.low, scale.high, pixels))
    if whole and not logarithmic:
        scale = replace(scale, reads="whole")
    return scale, [*map(place, settings)]


def _scattered(
    places: Sequence[float], trials: Sequence[FrozenTrial], step: float, width: float
) -> list[float]:
    """Spreads trials of one choice next to each other, so that they can be counted."""
    return [
        at + width * (step * trial.number % 1 - 0.5)
        for at, trial in zip(places, trials, strict=True)
    ]


def slices(
    trials: Sequence[FrozenTrial], names: Sequence[str], best: FrozenTrial | None, axis: Axis
) -> Multiples | str:
    """Draws the value of each trial over each hyperparameter; the last value if it ended early.

    The axis covers the complete trials, and the same length again beyond them. Trials further
    away are strokes at its end.
    """
    if not names:
        return NO_PARAMETERS
    complete, early = complete_trials(trials), ended_early(trials)
    values = {trial.number: _value(trial) for trial in complete}
    bottom, top = (axis.height(end(values.values())) for end in (min, max))
    reach = top - bottom or math.inf
    for known in early.values():
        values |= known
    near = {n for n, v in values.items() if bottom - reach <= axis.height(v) <= top + reach}
    y = axis.scale_of([values[number] for number in near], SMALL)
    heights = {n: min(max(axis.height(v), y.low), y.high) for n, v in values.items()}
    charts, end = {}, max(1, trials[-1].number) + 1
    for name in names:
        own = [trial for trial in trials if trial.number in values and name in trial.params]
        x, places = setting_scale(own, name, PHONE)
        if x.reads == "words":
            places = _scattered(places, own, 0.618034, 0.5)
        at = {t.number: (p, heights[t.number]) for p, t in zip(places, own, strict=True)}
        marks = _early_marks(at, early, near)
        done = {n: place for n, place in at.items() if not any(n in e for e in early.values())}
        marks += _shaded(done, {n: min(SHADES - 1, SHADES * n // end) for n in done}, 7)
        if best is not None and best.number in at:
            marks.append(points("", "best", {best.number: at[best.number]}, 12, shape="ring"))
        label = f"{axis.metric} over {name}, of {len(done)} complete trials"
        label += f" and {len(at) - len(done)} that ended early" if len(at) > len(done) else ""
        common = [trial for trial in complete if name in trial.params]
        charts[name] = Chart(label, SMALL, x, y, marks, summary(common, name, axis.sign))
    return Multiples(charts)


def _early_marks(
    at: Mapping[int, Point], early: Mapping[str, Collection[int]], near: Collection[int]
) -> list[Mark]:
    """Returns a square for each trial that ended early, or a stroke if it is not `near`."""
    marks = []
    for kind, numbers in early.items():
        own = {n: place for n, place in at.items() if n in numbers}
        squares, strokes = (
            {n: p for n, p in own.items() if (n in near) is so} for so in (True, False)
        )
        marks.append(points("", kind, squares, 5, shape="square"))
        marks.append(points("", kind, strokes, 2, shape="rug"))
    return _drawn(marks)


def _shaded(places: Mapping[int, Point], shades: Mapping[int, int], width: float) -> list[Mark]:
    """Returns a mark of dots for each shade of the ramp, with trials by number."""
    marks = []
    for shade in range(SHADES):
        own = {number: place for number, place in places.items() if shades[number] == shade}
        marks.append(points("", f"ramp-{shade}", own, width))
    return _drawn(marks)


def _cell(trial: FrozenTrial, name: str) -> str:
    return format_parameter(trial.params[name]) if name in trial.params else "–"


def together(trials: Sequence[FrozenTrial], names: Sequence[str], axis: Axis) -> Chart | str:
    """Draws trials over the two most important hyperparameters that occur together.

    Prefers two numbers to a number and a choice, and these to two choices.
    """
    pairs: list[tuple[int, int, str, str, list[FrozenTrial]]] = []
    complete = complete_trials(trials)
    for first, second in itertools.combinations(names, 2):
        own = [trial for trial in complete if first in trial.params and second in trial.params]
        varied = all(len({str(t.params[n]) for t in own}) > 1 for n in (first, second))
        if len(own) >= ENOUGH and varied:
            words = sum(isinstance(own[0].params[n], str | bool) for n in (first, second))
            pairs.append((words, len(pairs), first, second, own))
            if not words:  # no later pair comes before it
                break
    if not pairs:
        return "No two hyperparameters have been varied together in enough trials yet."
    _, _, first, second, common = min(pairs, key=lambda pair: pair[:2])
    early = ended_early(trials)
    numbers = {trial.number for trial in common}.union(*early.values())
    own = [t for t in trials if t.number in numbers and first in t.params and second in t.params]
    (x, left), (y, up) = (setting_scale(own, name) for name in (first, second))
    ticks = [tick for tick in y.ticks if tick.when != "narrow"]
    y = replace(y, ticks=spaced(ticks, y.low, y.high, PAIR_HEIGHT, upright=True))
    if x.reads == "words":
        left = _scattered(left, own, 0.618034, 0.4)
    if y.reads == "words":
        up = _scattered(up, own, 0.754878, 0.4)
    ranked = sorted(common, key=lambda trial: axis.sign * _value(trial))
    shades = {trial.number: SHADES * rank // len(common) for rank, trial in enumerate(ranked)}
    places = {t.number: (at, high) for t, at, high in zip(own, left, up, strict=True)}
    done = {trial.number: places[trial.number] for trial in common}
    marks = [*_early_marks(places, early, places), *_shaded(done, shades, 10)]
    rows = [
        (t.number, _cell(t, first), _cell(t, second), format_value(_value(t)))
        for t in ranked[::-1][:20]
    ]
    note = f"The best {len(rows)} of {len(common)}."
    table = PageTable(("trial", first, second, axis.metric), rows, words=(1, 2), note=note)
    label = f"{len(common)} complete trials over {first} and {second}, the better the bluer"
    return Chart(label, PAIR_HEIGHT, x, y, marks, table)


def best_lines(
    lines: Mapping[str, Part], metric: str, sign: int, *, over_time: bool
) -> Chart | str:
    """Draws the best value so far of several studies, over their trials or seconds of workers.

    Args:
        lines: when each study improved and when it ended, by label.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        return NOTHING_COMPLETE
    axis, marks, height = Axis.of(metric, sign, [value for _, value in points]), [], 340
    for place, (label, line) in enumerate(lines.items()):
        if line:
            steps = [line[0]]
            for (_, before), (at, value) in itertools.pairwise(line):  # the earlier one holds
                steps += [(at, before), (at, value)] if value != before else [(at, value)]
            part = [(at, axis.height(value)) for at, value in steps]
            width = 2 + 1.5 * (len(lines) - 1 - place)  # where lines meet, both are seen
            marks.append(Mark(label, STUDIES[place], "line", [part], width=width))
    y = axis.scale_of([value for _, value in points], height)
    furthest = max(x for x, _ in points)
    title = "seconds of workers" if over_time else "trials"
    x = plain_scale([0.0, furthest], title) if over_time else whole_scale(1, int(furthest), title)
    rows = [
        (label, f"{at:.0f}", format_value(value))
        for label, line in lines.items()
        for at, value in line[-12:]
    ]
    table = PageTable(("study", title, f"best {axis.metric} so far"), rows, words=(0,))
    label = f"the best {axis.metric} so far of {len(lines)} studies, by {title}"
    return Chart(label, height, x, y, marks, table)


def timeline(trials: Sequence[FrozenTrial], alive: Collection[int | None]) -> Chart | str:
    """Draws a row for each worker, with a bar for each trial that began there.

    Args:
        alive: the numbers of the trials that a worker trains now. Their bars end now; those of
            other unfinished trials end at the latest time stored with any trial.
    """
    rows = _spans_by_worker(trials, alive)
    if not rows:
        return "No trial has begun yet."
    names = sorted(rows, reverse=True)  # rows are drawn from the bottom up
    first = min(start for row in rows.values() for _, start, _ in row)
    last = max(end for row in rows.values() for *_, end in row)

    def at(moment: datetime) -> float:
        return (moment - first).total_seconds()

    marks = []
    for kind in ("complete", "pruned", "failed", "paused", INTERRUPTED, "running"):
        bars = {
            trial.number: [(at(start), row), (at(end), row)]
            for row, name in enumerate(names)
            for trial, start, end in rows[name]
            if shown_state(trial, alive) == kind
        }
        color = COLORS.get(kind, kind)
        marks.append(Mark(kind, color, "bar", [*bars.values()], [*bars], BAR))
    notes, table = list[Note](), list[tuple[object, ...]]()
    for row, name in enumerate(names):
        spans = [(start, end) for _, start, end in rows[name]]
        idle = f"{100 * idle_share(spans):.1f}%"
        notes.append(Note(0, row + BAR + 0.02, f"{shorten(name, 32)} · {idle} idle", "above"))
        trained = format_duration(sum((end - start).total_seconds() for start, end in spans))
        table.insert(0, (name, len(spans), trained, idle))
    length = max(at(last), 1.0)
    pattern = "%H:%M:%S" if length < 600 else "%H:%M" if length < 86400 else "%d %b %H:%M"
    marked = [length * part / 5 for part in range(6)]
    ticks = [Tick(t, (first + timedelta(seconds=t)).strftime(pattern)) for t in marked]
    x = ChartScale(0.0, length, responsive(ticks, 0.0, length), "", "none")
    y = ChartScale(-0.12, len(names) - 0.12, reads="none")
    label = f"when each of {len(names)} workers trained which trial"
    behind = PageTable(("worker", "trials", "trained for", "idle"), table, words=(0,))
    return Chart(label, ROW * len(names) + 8, x, y, _drawn(marks), behind, notes)


def _spans_by_worker(
    trials: Sequence[FrozenTrial], alive: Collection[int | None]
) -> dict[str, list[Span]]:
    started = [trial for trial in trials if trial.datetime_start is not None]
    moments = [moment for t in started for moment in (t.datetime_start, t.datetime_complete)]
    latest = max((moment for moment in moments if moment is not None), default=datetime.min)
    rows: dict[str, list[Span]] = {}
    for trial in started:
        start = trial.datetime_start or latest
        now = max(datetime.now(), start) if trial.number in alive else latest
        end = trial.datetime_complete or now
        record = TrialRecord(trial)
        if record.rungs:  # without its pauses
            worked = timedelta(seconds=sum(record.times.values()))
            end = min(end, start + worked) if worked else end
        worker = str(record.worker or "unknown worker")
        rows.setdefault(worker, []).append((trial, start, end))
    return rows


def idle_share(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Computes the share of time without a trial between the first start and the last end."""
    first = until = min(start for start, _ in spans)
    busy = 0.0
    for start, end in sorted(spans):
        busy += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    total = (until - first).total_seconds()
    return 1 - busy / total if total else 0.0


def predictions(stored: Predictions) -> Chart | str:
    """Draws predicted and true numbers: over time if they are in that order, else as pairs."""
    predicted, targets = (
        [each[0] for each in series] for series in (stored.predicted, stored.targets)
    )
    if not predicted:
        return "winner.json holds no predictions."
    pairs, numbers = [*zip(targets, predicted, strict=True)], [*targets, *predicted]
    rows = [(n, *map(format_value, pair)) for n, pair in enumerate(pairs[:EXAMPLE_ROWS])]
    note = _left_out(rows, len(pairs), "examples")
    table = PageTable(("example", "true value", "prediction"), rows, note=note)
    if stored.ordered:
        height = 280
        marks = [
            Mark("true value", "pruned", "line", [[*enumerate(targets)]], width=2),
            Mark("prediction", "best", "line", [[*enumerate(predicted)]], width=2),
        ]
        x, title = whole_scale(0, max(1, len(pairs) - 1), "example"), ""
        label = f"predictions and true values of {len(pairs)} examples in the order of time"
    else:
        height, ends = 360, [(end, end) for end in (min(numbers), max(numbers))]
        marks = [
            dotted("prediction = true value", "pruned", ends),
            Mark("best", "best", "dot", [[pair] for pair in pairs], width=6),
        ]
        x, title = plain_scale(numbers, "true value"), "prediction"
        label = f"predictions over true values of {len(pairs)} examples"
    y = plain_scale(numbers, title, upright=True, height=height)
    return Chart(label, height, x, y, marks, table)


MOST_ABLATED = 40  # rows of the figure; its table has all


def ablation(found: Ablation) -> Chart | str:
    """Draws how much worse the winner is without each of its changes, with intervals."""
    known = [(row, row.loss) for row in found.rows if row.loss is not None][MOST_ABLATED - 1 :: -1]
    error = found.error or 0.0
    ends = [loss + way * error for _, loss in known for way in (-1, 1)]
    if not known or not all(map(math.isfinite, ends)):
        return "winner.json holds no losses."
    x = plain_scale([0.0, *ends], "worse by")
    y = ChartScale(-0.5, len(known) - 0.3, reads="none")  # rows are drawn from the bottom up
    marks = [dotted("", "pruned", [(0, -0.5), (0, len(known) - 0.5)])]
    for needed, name, color in ((True, "needed", "best"), (False, "not needed", "complete")):
        dots = [(loss, at) for at, (row, loss) in enumerate(known) if row.needed is needed]
        lines = [[(loss - error, at), (loss + error, at)] for loss, at in dots]
        marks.append(Mark("", color, "line", lines, width=2))
        marks.append(Mark(name, color, "dot", [[dot] for dot in dots], width=9))
    names = [shorten(row.name, 32) for row, _ in known]
    notes = [Note(x.low, at + 0.2, name, "above") for at, name in enumerate(names)]
    head = ("hyperparameter", "winner", "default", "worse by", "", "winner.simple.yaml")
    behind = PageTable(head, [*found.cells()], words=(0, 4, 5))
    label = "how much worse the winner is without each change"
    return Chart(label, ROW * len(known) + 30, x, y, _drawn(marks), behind, notes)
