"""The figures of the reports, as charts: scales, marks, and a table of the same values.

A chart contains no HTML. `page` draws it as SVG that stretches to its width, without script,
network or images of several sizes. The function of a figure returns a chart, or a sentence that
says why there is nothing to draw yet. `trials` are those of a study, by number; `marked` ones are
highlighted.

A value becomes a *coordinate* on its axis (`Axis.height`, `setting_scale`), and a coordinate
becomes a *place* in the drawing, from 0 to SIZE (`ChartScale.place`). An *outcome* is how a trial
stands, as the table of trials calls it: complete, pruned, paused, failed, interrupted or running.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from statistics import median

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from studyloom.metrics import METRICS
from studyloom.storage.stored_study import StoredStudy, value_of
from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, shown_state
from studyloom.storage.trial_tables import quantities
from studyloom.text import (
    format_cost,
    format_duration,
    format_parameter,
    format_value,
    shorten,
)
from studyloom.views.words import describe_ablation
from studyloom.winner.result import Ablation, Predictions, Result, Summary

SIZE = 1000  # units of the drawing along each axis
NARROW = 280  # pixels of a horizontal axis on a phone
ROOMY = 860  # pixels of a horizontal axis on a wide screen
LETTER = 7.2  # pixels of a label's letter
GAP = 8  # pixels between two labels
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
        text_columns: the columns of text; the others are aligned as numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    text_columns: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Tick:
    """A label of an axis.

    Args:
        coordinate: where it is on the axis.
        when: `narrow` or `roomy` if it is only for a phone or only for a wide screen; else empty.
    """

    coordinate: float
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

    def place(self, coordinate: float) -> float:
        """Returns where a coordinate is drawn, from 0 to SIZE."""
        span = self.high - self.low
        if span == 0:
            return SIZE / 2
        return SIZE * (coordinate - self.low) / span

    def share(self, coordinate: float) -> str:
        """Returns where a coordinate is drawn, in percent."""
        return f"{100 * self.place(coordinate) / SIZE:.2f}"

    def edge(self, tick: Tick) -> str:
        """Returns the class of a long label at an end of the axis, which must not stick out."""
        share = self.place(tick.coordinate) / SIZE
        if len(tick.label) < 5 or 0.04 < share < 0.96:
            return ""
        if share < 0.5:
            return " first"
        return " last"

    def clip(self, coordinate: float) -> float:
        """Returns a coordinate, or the nearer end of the axis if it lies beyond."""
        return min(max(coordinate, self.low), self.high)

    @property
    def reading(self) -> Mapping[str, object]:
        """The data from which the script computes values on the scale."""
        return {
            "low": self.low,
            "high": self.high,
            "title": self.title,
            "reads": self.reads,
            "words": self.words,
        }


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


def make_points(
    name: str, color: str, places: Mapping[int, Point], width: float = 8, shape: str = "dot"
) -> Mark:
    """Returns a dot for each trial, by the trial's number."""
    parts = [[point] for point in places.values()]
    return Mark(name, color, shape, parts, [*places], width)


def make_dotted_line(name: str, color: str, ends: Part, width: float = 1) -> Mark:
    """Returns a dotted line between two ends."""
    return Mark(name, color, "line", [ends], width=width, style=("dotted",))


@dataclass(frozen=True)
class Note:
    """A few words to the `right` or `left` of a position in a chart, or `above` it."""

    x: float
    y: float
    text: str
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
        if longest == 0:
            return 2
        return round(LETTER * longest + 8)

    def is_read(self, mark: Mark) -> bool:
        """Returns True if the pointer reads the values of a mark."""
        if mark.trials:
            return True
        is_guide = "dotted" in mark.style or "stepped" in mark.style
        return bool(mark.name) and not is_guide

    def path(self, mark: Mark, wide: float = SIZE, high: float = SIZE) -> str:
        """Returns a mark as the data of an SVG path, in an area so wide and high."""
        return "".join(self._part(mark, part, wide, high) for part in mark.parts)

    def _part(self, mark: Mark, part: Part, wide: float, high: float) -> str:
        """Returns one line or dot as the data of an SVG path, in which y grows downwards."""
        places = []
        for x, y in part:
            from_left = wide * self.x.place(x) / SIZE
            from_top = high * (1 - self.y.place(y) / SIZE)
            places.append((from_left, from_top))
        x, y = places[0]
        start = f"M{_digits(x)} {_digits(y)}"
        if mark.shape == "bar":
            end, _ = places[1]
            length = _digits(max(end - x, 0.6))  # a bar of no duration is visible too
            height = _digits(mark.width * high / (self.y.high - self.y.low))
            return f"{start}h{length}v-{height}h-{length}z"
        if mark.shape == "rug":
            return f"M{_digits(x)} {_digits(y - 0.016 * high)}v{_digits(0.032 * high)}"
        if mark.shape != "line" or len(places) == 1:  # a curve of one epoch is a dot
            return "".join(f"M{_digits(x)} {_digits(y)}h.01" for x, y in places)
        corner = "L{} {}"
        if "stepped" in mark.style:
            corner = "H{}V{}"
        return start + "".join(corner.format(_digits(x), _digits(y)) for x, y in places[1:])


def _digits(number: float) -> str:
    """Formats a number of an SVG path, with at most one digit after the point."""
    return f"{number:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Multiples(Block):
    """Small charts side by side, each below its title."""

    charts: Mapping[str, Chart] = field(default_factory=dict)


def drop_overlapping(
    ticks: Sequence[Tick], low: float, high: float, pixels: float, *, upright: bool = False
) -> Sequence[Tick]:
    """Drops labels, which have ascending coordinates, until no two overlap.

    Every label is tried first, then every second one and so on, and at last only the outer two.
    """
    pixels_per_unit = pixels / ((high - low) or 1)

    def is_clear(left: Tick, right: Tick) -> bool:
        distance = (right.coordinate - left.coordinate) * pixels_per_unit
        if upright:
            return distance >= LINE
        return distance >= LETTER * (len(left.label) + len(right.label)) / 2 + GAP

    selections = [ticks[::stride] for stride in range(1, len(ticks))]
    outer_two = ticks[:: max(1, len(ticks) - 1)]
    for selection in (*selections, outer_two):
        if all(itertools.starmap(is_clear, itertools.pairwise(selection))):
            return selection
    return ticks[:1]


def fit_labels(
    ticks: Sequence[Tick], low: float, high: float, pixels: float | None = None
) -> Sequence[Tick]:
    """Returns the labels of a horizontal axis: fewer on a phone than on a wide screen.

    Args:
        pixels: the length of the axis, if it is the same on all screens.
    """
    if pixels is not None:
        return drop_overlapping(ticks, low, high, pixels)
    on_phone = drop_overlapping(ticks, low, high, NARROW)
    on_wide_screen = drop_overlapping(ticks, low, high, ROOMY)
    labels = []
    for tick in ticks:
        if tick in on_phone and tick in on_wide_screen:
            labels.append(replace(tick, when=""))
        elif tick in on_phone:
            labels.append(replace(tick, when="narrow"))
        elif tick in on_wide_screen:
            labels.append(replace(tick, when="roomy"))
    return labels


def is_one_value(low: float, high: float) -> bool:
    """Returns True if two numbers, the lower one first, are equal up to rounding."""
    return high - low <= ROUNDING * max(abs(low), abs(high))


def tick_labels(marks: Sequence[float], digits: int) -> list[str]:
    """Returns a label for each mark, with at least so many digits, and more until they differ."""
    labels: list[str] = []
    for count in range(digits, 17):
        labels = [f"{mark:.{count}g}" for mark in marks]
        if len({*labels}) == len({*marks}):
            break
    return labels


def whole_scale(low: float, high: float, title: str = "") -> ChartScale:
    """Returns a horizontal axis of integers, with integer labels."""
    margin = 0.03 * (high - low) + 0.3
    start = low - margin
    end = high + margin
    step = next(step for step in _round_steps() if (high - low) / step <= 12)
    first = math.ceil(low / step) * step
    ticks = [Tick(mark, str(mark)) for mark in range(first, math.floor(high) + 1, step)]
    return ChartScale(start, end, fit_labels(ticks, start, end), title, "whole")


def _round_steps() -> Iterator[int]:
    """Yields 1, 2, 5, 10, 20, 50, 100 and so on."""
    for power in itertools.count():
        for factor in (1, 2, 5):
            yield factor * 10**power


def round_marks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers between two; only the lower one if they are one value."""
    if is_one_value(low, high):
        return [low]
    exponent = math.floor(math.log10((high - low) / count))
    power = 10.0**exponent
    step = next(s * power for s in (1, 2, 5, 10) if (high - low) / (s * power) <= count)
    # The ends may be multiples of the step up to rounding, such as 0.3 = 3 * 0.1.
    multiples = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    if len(multiples) < 2:  # one number on an axis gives no measure
        return round_marks(low, high, count + 1)
    return [round(multiple * step, -exponent) for multiple in multiples]


def plain_scale(
    values: Sequence[float], title: str = "", *, upright: bool = False, height: int = 300
) -> ChartScale:
    """Returns an axis of numbers, at least one, with round labels."""
    low = min(values)
    high = max(values)
    margin = 0.05 * (high - low)
    if is_one_value(low, high):
        margin = 0.05 * max(1.0, abs(high))
    start = low - margin
    end = high + margin
    marks = round_marks(start, end, 6)
    ticks: Sequence[Tick] = [*map(Tick, marks, tick_labels(marks, 4))]
    if upright:
        ticks = drop_overlapping(ticks, start, end, height, upright=True)
    else:
        ticks = fit_labels(ticks, start, end)
    return ChartScale(start, end, ticks, title)


def log_scale(values: Sequence[float], title: str = "", pixels: float | None = None) -> ChartScale:
    """Returns a horizontal axis of values above 0 on which equal steps are equal factors.

    Args:
        pixels: its length, if it is the same on all screens.
    """
    is_single = is_one_value(min(values), max(values))
    low = math.log10(min(values))
    high = math.log10(max(values))
    margin = 0.05 * (high - low)
    if is_single:
        margin = 0.1
    start = low - margin
    end = high + margin
    marks = log_marks(min(values), max(values))
    ticks = fit_labels(
        [Tick(math.log10(mark), f"{mark:.3g}") for mark in marks], start, end, pixels
    )
    if len(ticks) < 2 and not is_single:  # the range lies between two round numbers
        ticks = [Tick(power, f"{10**power:.2g}") for power in (low, high)]
    return ChartScale(start, end, ticks, title, "tens")


def log_marks(low: float, high: float) -> list[float]:
    """Returns two to four round numbers between two values, powers of ten first; else the two."""
    digits = [1, 3]
    if high >= 100 * low:
        digits = [1]
    marks = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in digits:
            mark = float(f"{digit * 10.0**power:.10g}")
            if low <= mark <= high:
                marks.append(mark)
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
    def choose(cls, metric: str, sign: int, values: Collection[float]) -> "Axis":
        """Returns the axis of a metric, by its name and finite values.

        The scale of an unknown metric is `factors` if less is better and its values, all above 0,
        differ by more than a factor of ten; otherwise it is `plain`. A metric is unknown if the
        known one of its name cannot have all of its values.
        """
        scale = "plain"
        standard = METRICS.get(metric)
        if standard is not None and standard.sign == sign and all(map(standard.can_be, values)):
            scale = standard.scale
        if scale == "plain" and sign < 0 and 0 < 10 * min(values, default=0) < max(values):
            scale = "factors"
        return cls(metric, scale, sign)

    def height(self, value: float) -> float:
        """Returns the coordinate at which a value is drawn."""
        if self.scale == "plain":
            return value
        if self.scale == "unit":
            return -math.log10(max(1.0 - value, LEAST["unit"]))
        return math.log10(max(value, LEAST["factors"]))

    def near(self, values: Collection[float]) -> list[float]:
        """Returns the values, without those far worse than the best nine tenths.

        The best nine tenths then take at least a third of the axis.
        """
        ordered = sorted(values, key=lambda value: -self.sign * value)
        best = ordered[0]
        last = ordered[math.ceil(0.9 * len(ordered)) - 1]
        most = 3 * abs(self.height(last) - self.height(best))

        def is_near(value: float) -> bool:
            if is_one_value(min(value, best), max(value, best)):
                return True
            return abs(self.height(value) - self.height(best)) <= most

        return [value for value in ordered if is_near(value)]

    def marks(self, low: float, high: float) -> list[float]:
        """Returns some round values between `low` and `high`, or only `low` without any."""
        marks: list[float] = []
        if self.scale == "unit":
            marks = _marks_below_one(low, high)
        elif self.scale == "factors" and low > 0:
            marks = log_marks(low, high)
        if len(marks) < 3:
            marks = round_marks(low, high, 8)
        return marks

    def scale_of(self, values: Collection[float], height: int) -> ChartScale:
        """Returns the vertical axis for some values.

        Args:
            height: its length in pixels.
        """
        low = min(values)
        high = max(values)
        bottom = self.height(low)
        top = self.height(high)
        margin = 0.06 * (top - bottom)
        if bottom == top or is_one_value(low, high):
            margin = 0.05 * max(1.0, abs(top))
        start = bottom - margin
        end = top + margin
        marks = self.marks(low, high)
        ticks = [*map(Tick, map(self.height, marks), tick_labels(marks, 6))]
        reads = {"unit": "unit", "factors": "tens", "plain": "plain"}[self.scale]
        labels = drop_overlapping(ticks, start, end, height, upright=True)
        return ChartScale(start, end, labels, self.metric, reads)


def _marks_below_one(low: float, high: float) -> list[float]:
    """Returns the numbers between two whose distance to 1 is round, such as 0.5, 0.9 and 0.98."""
    marks = []
    for power in range(5):
        for digit in (5, 3, 2, 1):
            mark = round(1 - digit * 10.0**-power, 10)
            if low <= mark <= high:
                marks.append(mark)
    return marks


# The figures of a study

ENOUGH = 3  # complete trials that must have a hyperparameter before it is drawn
NO_PARAMETERS = f"No hyperparameter has had different values in {ENOUGH} complete trials yet."
NOTHING_COMPLETE = "No trial is complete yet."
NO_VALUE = "No trial has a value yet."
# The width of a trial's mark in the history, by its outcome: small ones are squares, of trials that
# ended early, are paused or interrupted. The last are on top.
HISTORY = {"failed": 4, "pruned": 4, "paused": 5, "complete": 8, INTERRUPTED: 7, "running": 9}
# The outcomes in the order in which their curves are drawn: the last are on top.
CURVES = ("failed", "pruned", "paused", INTERRUPTED, "running", "complete")
BARS = ("complete", "pruned", "failed", "paused", INTERRUPTED, "running")  # order of the timeline
UNFINISHED = ("failed", "pruned", "paused", INTERRUPTED)  # their curves end in a square
COLORS = {INTERRUPTED: "running"}  # of a state that shares the color of another
MANY = 400  # trials, whose marks are smaller
BINS = 4  # of a hyperparameter's settings, in the table behind its figure
LINES = ("complete", "baseline", "running", "failed", "pruned")  # colors of further quantities
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
STUDIES = ("complete", "failed", "best", "baseline", "running", "paused", "pruned")  # colors
MOST_STUDIES = len(STUDIES)  # more lines cannot be distinguished
MOST_BEST = 100  # best curves that are drawn; more are one stain
MOST_LATEST = 200  # latest curves that are drawn
CURVE_ROWS = 60  # of the table behind the curves
EXAMPLE_ROWS = 40  # of the table behind the predictions
IMPROVEMENT_ROWS = 12  # of each study, in the table behind a comparison
PAIR_ROWS = 20  # of the table behind two hyperparameters
SPREAD = 10.0  # costs that differ by more than this factor are drawn on a logarithmic axis
MOST_CHOICES = 5  # of a number, each has a label
SHADES = 5  # of a ramp from gray to blue
SMALL = 170  # pixels of the height of a small chart
PAIR_HEIGHT = 360  # pixels
PHONE = 124  # pixels of a small chart's axis on a phone, where two share a row
LETTERS = 24  # in the labels of all choices together, on a small chart
ROW = 44  # pixels of a row: a bar or dot with its label above it
BAR = 0.32  # the share of a row that a worker's bar takes
# Multiples of these, modulo 1, are spread evenly over 0 to 1, however many there are. Two axes
# take different ones; with the same, dots of two choices would lie on a diagonal.
GOLDEN = 0.618034
PLASTIC = 0.754878

Curve = Sequence[tuple[int, float]]  # epochs, and the value after each; a loop may begin at 0
Marked = Mapping[str, FrozenTrial | None]  # `baseline`, `best` and, of a front, `winner`


def complete_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the complete trials whose value is a finite number."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and math.isfinite(_value(trial))
    ]


def last_values(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Returns the value of each complete trial, and the last finite one that others reported."""
    values = {trial.number: _value(trial) for trial in complete_trials(trials)}
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            reported = [value for _, value in learning_curve(trial) if _is_finite(value)]
            if reported:
                values[trial.number] = reported[-1]
    return values


def ended_early(trials: Sequence[FrozenTrial]) -> dict[str, dict[int, float]]:
    """Returns the last value of each trial that was pruned or is paused, by outcome and number."""
    values = last_values(trials)
    early: dict[str, dict[int, float]] = {"pruned": {}, "paused": {}}
    for trial in trials:
        outcome = TrialRecord(trial).outcome
        if outcome in early and trial.number in values:
            early[outcome][trial.number] = values[trial.number]
    return early


def learning_curve(trial: FrozenTrial) -> Curve:
    """Returns the learning curve that a trial stored, or else the values that it reported."""
    columns = TrialRecord(trial).curve
    return list(zip(columns.get("number", ()), columns.get("value", ()), strict=False))


def best_so_far(complete: Sequence[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Returns the trials that were better than all feasible trials before them."""
    steps: list[FrozenTrial] = []
    for trial in complete:
        constraints = trial.constraints or {}
        is_feasible = all(excess <= 0 for excess in constraints.values())
        if is_feasible and (not steps or sign * _value(trial) > sign * _value(steps[-1])):
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


def _sort_key(setting: object) -> tuple[str, float, str]:
    """Returns a key that sorts numbers by size, and other settings after them by type and name."""
    if isinstance(setting, int | float):
        return "", float(setting), str(setting)
    return type(setting).__name__, 0.0, str(setting)


def _select(places: Mapping[int, Point], numbers: Collection[int]) -> dict[int, Point]:
    """Returns the places of some trials, by number."""
    return {number: place for number, place in places.items() if number in numbers}


def _remove(places: Mapping[int, Point], numbers: Collection[int]) -> dict[int, Point]:
    """Returns the places of all trials but some, by number."""
    return {number: place for number, place in places.items() if number not in numbers}


def _without_empty(marks: Sequence[Mark]) -> list[Mark]:
    """Returns the marks that have something to draw."""
    return [mark for mark in marks if mark.parts]


def _color(outcome: str) -> str:
    """Returns the color of an outcome, or that of the outcome whose color it shares."""
    return COLORS.get(outcome, outcome)


def _count_left_out(rows: Sequence[object], total: int, what: str) -> str:
    """Returns a note on how many trials or examples have no row; empty if all have one."""
    count = total - len(rows)
    if count == 0:
        return ""
    return f"{count} further {what} are left out."


def summarize_settings(trials: Sequence[FrozenTrial], name: str, sign: int) -> PageTable:
    """Returns the values of complete trials by their setting of a hyperparameter.

    Many different numbers are divided into four ranges with as many trials each.
    """
    rows = []
    for label, members in _group_by_setting(trials, name):
        values = sorted(map(_value, members), key=lambda value: -sign * value)
        rows.append((label, len(members), format_value(values[0]), format_value(median(values))))
    return PageTable((name, "complete trials", "best", "median"), rows, text_columns=(0,))


def _group_by_setting(
    trials: Sequence[FrozenTrial], name: str
) -> Iterator[tuple[str, Sequence[FrozenTrial]]]:
    """Yields the label of each setting, or range of settings, and the trials that have it."""
    ordered = sorted(trials, key=lambda trial: _sort_key(trial.params[name]))
    settings = list(dict.fromkeys(trial.params[name] for trial in ordered))
    if len(settings) <= 2 * BINS or not all(map(_is_number, settings)):
        for setting in settings:
            members = [trial for trial in trials if trial.params[name] == setting]
            yield _label(setting, 60), members
        return
    ends = [len(ordered) * part // BINS for part in range(BINS + 1)]
    for start, end in itertools.pairwise(ends):
        first = _label(ordered[start].params[name])
        last = _label(ordered[end - 1].params[name])
        yield f"{first} to {last}", ordered[start:end]


def draw_history(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    winner: Result | None = None,
    live_trials: Collection[int] | None = None,
) -> Chart | str:
    """Draws each trial at its last value, the best so far, and the winner's values on new seeds.

    A stroke at the edge is a trial far worse than the others, one at the bottom has no value.
    """
    height = 320
    values = last_values(trials)
    if not values:
        return NO_VALUE
    new_values = {}
    if winner is not None:
        new_values = winner.new_values(axis.metric)
    ends_of_new_values: list[float] = []
    for new_value in new_values.values():
        ends_of_new_values += new_value.mean_and_error

    y = axis.scale_of([*axis.near(values.values()), *ends_of_new_values], height)
    heights = {number: y.clip(axis.height(value)) for number, value in values.items()}
    near = {number for number, value in values.items() if heights[number] == axis.height(value)}
    margin = 0.05 * (y.high - y.low)
    bottom = y.low - margin
    outcomes = {trial.number: shown_state(trial, live_trials) for trial in trials}
    places = {}
    for number, outcome in outcomes.items():
        if outcome in HISTORY:
            places[number] = (number, heights.get(number, bottom))
    if any(number not in values for number in places):
        y = replace(y, low=bottom - margin)
    last_number = max(outcomes)
    x = whole_scale(0, last_number, "trial")
    right_edge = x.high
    step = 0.035 * (x.high - x.low)  # between the new values, to the right of the trials
    x = replace(x, high=right_edge + step * len(new_values))

    marks = _outcome_marks(places, outcomes, near)
    improvements = best_so_far(complete_trials(trials), axis.sign)
    corners: list[Point] = []
    for trial in improvements:
        if trial.number in near:
            corners.append((trial.number, heights[trial.number]))
    marks.append(_best_so_far_mark(corners, last_number))
    baseline = value_of(marked["baseline"])
    if baseline is not None and y.low <= axis.height(baseline) <= y.high:
        baseline_height = axis.height(baseline)
        ends = [(x.low, baseline_height), (x.high, baseline_height)]
        marks.append(make_dotted_line("baseline", "baseline", ends, 1.5))
    name = "best"
    ringed = None
    if winner is not None:
        name = "winner"
        ringed = winner.winner.trial
    elif marked["best"] is not None:
        ringed = marked["best"].number
    if ringed is not None and ringed in near:
        ring = {ringed: (ringed, heights[ringed])}
        marks.append(make_points(name, name, ring, 13, shape="ring"))
    for position, (name, new_value) in enumerate(new_values.items()):
        marks += _new_value_marks(name, new_value, right_edge + step * position, axis)

    rows = [(trial.number, format_value(_value(trial))) for trial in improvements]
    note = ""
    if baseline is not None:
        note = f"The baseline has {format_value(baseline)}."
    table = PageTable(("from trial", f"best {axis.metric} so far"), rows, note=note)
    label = f"{axis.metric} of {len(values)} trials, in the order in which they began"
    return Chart(label, height, x, y, _without_empty(marks), table)


def _best_so_far_mark(corners: Sequence[Point], last_number: int) -> Mark:
    """Returns the line of the best value so far, which continues to the last trial.

    Args:
        corners: the places of the trials that were better than all before them.
    """
    lines = []
    if corners:
        _, best_height = corners[-1]
        lines.append([*corners, (last_number, best_height)])
    return Mark("best so far", "best", "line", lines, width=2, style=("stepped",))


def _new_value_marks(name: str, value: Summary, x: float, axis: Axis) -> list[Mark]:
    """Returns the mean of the winner on new seeds, with a bar from end to end of its error.

    Args:
        name: the name of the value; `test` is drawn as a square.
        x: where it is drawn.
    """
    bar = [(x, axis.height(end)) for end in value.mean_and_error]
    shape = "dot"
    if name == "test":
        shape = "square"
    mean = (x, axis.height(value.mean))
    return [
        Mark("", "winner", "line", [bar], width=2),
        Mark(name, "winner", shape, [[mean]]),
    ]


def _outcome_marks(
    places: Mapping[int, Point], outcomes: Mapping[int, str], near: Collection[int]
) -> list[Mark]:
    """Returns the dots or squares of the trials of each outcome; strokes for those not `near`."""
    marks = []
    for outcome, width in HISTORY.items():
        size: float = width
        if len(outcomes) > MANY:
            size = 0.6 * width
        shape = "dot"
        if width < 8:
            shape = "square"
        members = {number for number in places if outcomes[number] == outcome}
        member_places = _select(places, members)
        shown = _select(member_places, near)
        strokes = _remove(member_places, near)
        name_of_strokes = outcome
        if shown:
            name_of_strokes = ""  # the legend names the outcome once
        marks.append(make_points(outcome, _color(outcome), shown, size, shape=shape))
        marks.append(make_points(name_of_strokes, _color(outcome), strokes, 2, shape="rug"))
    return marks


def finite_curves(trials: Sequence[FrozenTrial]) -> dict[int, Curve]:
    """Returns the learning curves whose values are finite numbers, by trial."""
    by_number = {}
    for trial in trials:
        curve = learning_curve(trial)
        if curve and all(_is_finite(value) for _, value in curve):
            by_number[trial.number] = curve
    return by_number


def draw_curves(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    live_trials: Collection[int] | None = None,
) -> Chart | str:
    """Draws the learning curves, as one mark for each outcome; of many, the best and the latest."""
    height = 360
    all_curves = finite_curves(trials)
    if not all_curves:
        return "No trial has ended an epoch yet."
    highlighted = {trial.number for trial in marked.values() if trial is not None}

    def last_value(number: int) -> float:
        _, value = all_curves[number][-1]
        return value

    ranked = sorted(all_curves, key=lambda number: -axis.sign * last_value(number))
    latest = list(all_curves)[-MOST_LATEST:]
    drawn = {*ranked[:MOST_BEST], *latest, *highlighted}
    lines: dict[int, list[Point]] = {}
    values = []
    epochs = []
    for number, curve in all_curves.items():
        if number in drawn:
            lines[number] = [(epoch, axis.height(value)) for epoch, value in curve]
            values += [value for _, value in curve]
            epochs += [epoch for epoch, _ in curve]

    def mark_of(name: str, numbers: Sequence[int], width: float, style: Sequence[str] = ()) -> Mark:
        parts = [lines[number] for number in numbers]
        if all(len(part) == 1 for part in parts):  # a single epoch needs some width
            return Mark(name, _color(name), "dot", parts, numbers, 7, style)
        return Mark(name, _color(name), "line", parts, numbers, width, style)

    outcomes = {trial.number: shown_state(trial, live_trials) for trial in trials}
    marks = []
    for outcome in CURVES:
        members = []
        for number in lines:
            if outcomes[number] == outcome and number not in highlighted:
                members.append(number)
        marks.append(mark_of(outcome, members, 1.3, ("faint",)))
        if outcome in UNFINISHED:
            ends = {number: lines[number][-1] for number in members}
            marks.append(make_points("", _color(outcome), ends, 5, shape="square"))
    for name, trial in marked.items():
        members = []
        if trial is not None and trial.number in lines:
            members = [trial.number]
        marks.append(mark_of(name, members, 3))
    y = axis.scale_of(values, height)
    x = whole_scale(min(1, *epochs), max(epochs), "epoch")
    rungs = set[int]()
    for trial in trials:
        rungs.update(TrialRecord(trial).rungs)
    for rung in sorted(rungs):
        marks.append(make_dotted_line("", "paused", [(rung, y.low), (rung, y.high)]))
    best_first = {number: all_curves[number] for number in ranked}
    table = _curves_table(best_first, outcomes, axis)
    label = f"{axis.metric} after each epoch, of {len(lines)} of {len(all_curves)} trials"
    return Chart(label, height, x, y, _without_empty(marks), table)


def _curves_table(
    best_first: Mapping[int, Curve], outcomes: Mapping[int, str], axis: Axis
) -> PageTable:
    """Returns the table of learning curves: their length, first, best and last value."""
    rows = []
    for number, curve in itertools.islice(best_first.items(), CURVE_ROWS):
        values = [value for _, value in curve]
        first = format_value(values[0])
        best = format_value(max(values, key=lambda value: axis.sign * value))
        last = format_value(values[-1])
        rows.append((number, outcomes[number], len(values), first, best, last))
    head = ("trial", "state", "epochs", "first", "best", "last")
    note = _count_left_out(rows, len(best_first), "trials")
    return PageTable(head, rows, text_columns=(1,), note=note)


def name_losses_section(trial: FrozenTrial | None) -> str:
    """Names the section of the figure that `draw_losses` draws."""
    if trial is not None and {*quantities([trial])} - {*LOSSES}:
        return "quantities"
    return "losses"


def draw_losses(trial: FrozenTrial) -> Chart | str:
    """Draws the training and validation loss of a trial, epoch by epoch.

    For a custom training loop it draws all that the loop reported next to the value.
    """
    height = 280
    columns = TrialRecord(trial).curve
    epochs = columns.get("number") or []
    names = quantities([trial])
    lines: dict[str, list[Point]] = {}
    values: list[float] = []
    for name in names:
        line = []
        for epoch, value in zip(epochs, columns[name], strict=False):
            if _is_finite(value):  # a loop may report a quantity only in some epochs
                line.append((epoch, value))
        lines[name] = line
        values += [value for _, value in line]
    if not values or any(len(columns[name]) != len(epochs) for name in names):
        return f"Trial {trial.number} stored no losses."
    marks = [_quantity_mark(name, line, index) for index, (name, line) in enumerate(lines.items())]
    y = plain_scale([0.0, *values], upright=True, height=height)
    bottom = 0.0  # without the margin below it, unless a value is below 0
    if min(values) < 0:
        bottom = min(0.0, y.low)
    title = ""
    if {*names} <= {*LOSSES}:
        title = "loss"
    y = replace(y, low=bottom, title=title)
    x = whole_scale(epochs[0], epochs[-1], "epoch")
    notes = []
    if {*names} == {*LOSSES} and len(lines["valid_loss"]) > 1:
        lowest, _ = min(lines["valid_loss"], key=lambda point: point[1])
        marks.append(make_dotted_line("", "pruned", [(lowest, y.low), (lowest, y.high)]))
        middle = (epochs[0] + epochs[-1]) / 2
        side = "right"
        if lowest > middle:
            side = "left"
        notes.append(Note(lowest, y.high, f"lowest at epoch {lowest}", side))
    rows = []
    for position, epoch in enumerate(epochs):
        cells = []
        for name in names:
            value = columns[name][position]
            cell = ""
            if _is_finite(value):
                cell = format_value(value)
            cells.append(cell)
        rows.append((epoch, *cells))
    titles = [LOSSES.get(name, name) for name in names]
    label = f"{', '.join(titles)} of trial {trial.number} by epoch"
    table = PageTable(("epoch", *titles), rows)
    return Chart(label, height, x, y, _without_empty(marks), table, notes)


def _quantity_mark(name: str, line: Part, index: int) -> Mark:
    """Returns the line of a quantity, or a dot if it was reported in one epoch.

    Args:
        index: the position of the quantity among all, which decides its color.
    """
    color = LINES[index % len(LINES)]
    if name in LOSSES:
        color = "best"
    style: Sequence[str] = ()
    if name == "train_loss":
        style = ["dotted"]
    title = LOSSES.get(name, name)
    if len(line) > 1:
        return Mark(title, color, "line", [line], width=2.5, style=style)
    parts = []
    if line:
        parts.append(line)
    return Mark(title, color, "dot", parts, width=8, style=style)


def draw_front(stored: StoredStudy, marked: Marked, axis: Axis, table: PageTable) -> Chart | str:
    """Draws each complete trial by cost and value, including those that violate a constraint.

    Args:
        table: that of the trials on the front.
    """
    height = 340
    trials = [trial for trial in complete_trials(stored.trials()) if len(trial.values or ()) > 1]
    if not trials:
        return NOTHING_COMPLETE
    cost = stored.objectives[1]
    costs = [trial.values[1] for trial in trials]
    is_logarithmic = 0 < SPREAD * min(costs) < max(costs)
    better = "less"
    if cost.sign > 0:
        better = "more"
    title = f"{cost.name}, {better} is better"
    if is_logarithmic:
        x = log_scale(costs, title)
    else:
        x = plain_scale(costs, title)
    ticks = []
    for tick in x.ticks:
        amount = tick.coordinate
        if is_logarithmic:
            amount = 10**tick.coordinate
        # `format_cost` writes the digits that a rule of the winner accepts.
        ticks.append(Tick(tick.coordinate, format_cost(amount)))
    x = replace(x, ticks=fit_labels(ticks, x.low, x.high))

    places: dict[int, Point] = {}
    for trial in trials:
        value, amount = trial.values[:2]
        coordinate = amount
        if is_logarithmic:
            coordinate = math.log10(amount)
        places[trial.number] = (coordinate, axis.height(value))
    feasible = {trial.number for trial in stored.feasible()}
    on_front = {trial.number for trial in stored.front()}
    front_places = _select(places, on_front)
    size = 8.0
    if len(trials) > MANY:
        size = 4.8
    staircase = [sorted(front_places.values())]
    marks = [
        Mark("staircase", "best", "line", staircase, width=1.5, style=("stepped", "quiet")),
        make_points("infeasible", "failed", _remove(places, feasible), shape="square"),
        make_points("beaten", "complete", _select(places, feasible - on_front), size),
        make_points("front", "best", front_places),
    ]
    for name, marked_trial in marked.items():
        if marked_trial is not None and marked_trial.values:
            width = 14
            if name == "winner":
                width = 20  # it may be the best trial too, and then is a ring around that ring
            place = _select(places, [marked_trial.number])
            marks.append(make_points(name, name, place, width, shape="ring"))
    y = axis.scale_of([trial.values[0] for trial in trials], height)
    label = f"{axis.metric} over {cost.name}, of {len(trials)} complete trials"
    return Chart(label, height, x, y, _without_empty(marks), table)


def setting_scale(
    trials: Sequence[FrozenTrial], name: str, pixels: float | None = None
) -> tuple[ChartScale, list[float]]:
    """Returns the axis of a hyperparameter, with choices at 0, 1, …, and each trial's coordinate.

    Args:
        trials: at least one; all have the hyperparameter.
        pixels: the length of the axis, if it is the same on all screens.
    """
    settings = [trial.params[name] for trial in trials]
    distribution = trials[0].distributions[name]
    choices = list(dict.fromkeys(sorted(settings, key=_sort_key)))
    if isinstance(distribution, CategoricalDistribution) or not all(map(_is_number, settings)):
        positions = {choice: float(position) for position, choice in enumerate(choices)}
        scale = _choice_scale(choices, name, pixels)
        return scale, [positions[setting] for setting in settings]
    is_logarithmic = False
    has_step = False
    if isinstance(distribution, IntDistribution | FloatDistribution):
        is_logarithmic = distribution.log and min(settings) > 0
        has_step = distribution.step is not None
    place: Callable[[float], float]
    if is_logarithmic:
        place = math.log10
        scale = log_scale(settings, name, pixels)
    else:
        place = float
        scale = plain_scale(settings, name)

    is_whole = all(isinstance(setting, int) for setting in settings)
    marks: Sequence[float] = []  # instead of those of the scale
    if len(choices) <= MOST_CHOICES and (is_whole or has_step):
        marks = choices
    elif not is_logarithmic and (is_whole or pixels is not None):
        count = 5
        if pixels is not None:
            count = 3
        marks = round_marks(min(settings), max(settings), count)
        if is_whole:
            marks = [mark for mark in marks if mark == int(mark)]
    if marks:
        digits = ".4g"
        if is_whole and pixels is None:
            digits = ".0f"
        ticks = [Tick(place(mark), format(mark, digits)) for mark in marks]
        scale = replace(scale, ticks=fit_labels(ticks, scale.low, scale.high, pixels))
    if is_whole and not is_logarithmic:
        scale = replace(scale, reads="whole")
    return scale, [place(setting) for setting in settings]


def _choice_scale(choices: Sequence[object], name: str, pixels: float | None) -> ChartScale:
    """Returns the axis of choices at 0, 1, …; the more choices, the shorter their labels."""
    letters = 4 * LETTERS
    if pixels is not None:
        letters = LETTERS
    length = max(3, letters // len(choices) - 1)
    ticks = [Tick(position, _label(choice, length)) for position, choice in enumerate(choices)]
    low = -0.5
    high = len(choices) - 0.5
    labels = fit_labels(ticks, low, high, pixels)
    return ChartScale(low, high, labels, name, "words", [_label(choice) for choice in choices])


def _scattered(
    places: Sequence[float], trials: Sequence[FrozenTrial], step: float, width: float
) -> list[float]:
    """Spreads trials of one choice next to each other, so that they can be counted.

    Args:
        step: the shift from each trial to the next, as a share of `width` and modulo it.
        width: the width of the space that a choice has.
    """
    scattered = []
    for place, trial in zip(places, trials, strict=True):
        share = step * trial.number % 1
        scattered.append(place + width * (share - 0.5))
    return scattered


def draw_slices(
    trials: Sequence[FrozenTrial], names: Sequence[str], best: FrozenTrial | None, axis: Axis
) -> Multiples | str:
    """Draws the value of each trial over each hyperparameter; the last value if it ended early.

    The axis covers the complete trials, and the same length again beyond them. Trials further
    away are strokes at its end.
    """
    if not names:
        return NO_PARAMETERS
    complete = complete_trials(trials)
    values = {trial.number: _value(trial) for trial in complete}
    bottom = axis.height(min(values.values()))
    top = axis.height(max(values.values()))
    reach = top - bottom
    if reach == 0:  # all complete trials have one value, and the axis covers all trials
        reach = math.inf
    early = ended_early(trials)
    for last_values_of_outcome in early.values():
        values |= last_values_of_outcome
    near = set()
    for number, value in values.items():
        if bottom - reach <= axis.height(value) <= top + reach:
            near.add(number)
    y = axis.scale_of([values[number] for number in near], SMALL)
    heights = {number: y.clip(axis.height(value)) for number, value in values.items()}
    end = max(1, trials[-1].number) + 1
    charts = {}
    for name in names:
        members = [trial for trial in trials if trial.number in values and name in trial.params]
        x, across = setting_scale(members, name, PHONE)
        if x.reads == "words":
            across = _scattered(across, members, GOLDEN, 0.5)
        places: dict[int, Point] = {}
        for trial, position in zip(members, across, strict=True):
            places[trial.number] = (position, heights[trial.number])
        marks = _early_marks(places, early, near)
        complete_places = _remove(places, set[int]().union(*early.values()))
        # The later a trial began, the bluer its dot.
        shades = {}
        for number in complete_places:
            shades[number] = min(SHADES - 1, SHADES * number // end)
        marks += _shaded(complete_places, shades, 7)
        if best is not None and best.number in places:
            ring = _select(places, [best.number])
            marks.append(make_points("", "best", ring, 12, shape="ring"))
        label = f"{axis.metric} over {name}, of {len(complete_places)} complete trials"
        ended = len(places) - len(complete_places)
        if ended:
            label += f" and {ended} that ended early"
        complete_members = [trial for trial in complete if name in trial.params]
        table = summarize_settings(complete_members, name, axis.sign)
        charts[name] = Chart(label, SMALL, x, y, marks, table)
    return Multiples(charts)


def _early_marks(
    places: Mapping[int, Point], early: Mapping[str, Collection[int]], near: Collection[int]
) -> list[Mark]:
    """Returns a square for each trial that ended early, or a stroke if it is not `near`."""
    marks = []
    for outcome, numbers in early.items():
        members = _select(places, numbers)
        marks.append(make_points("", outcome, _select(members, near), 5, shape="square"))
        marks.append(make_points("", outcome, _remove(members, near), 2, shape="rug"))
    return _without_empty(marks)


def _shaded(places: Mapping[int, Point], shades: Mapping[int, int], width: float) -> list[Mark]:
    """Returns a mark of dots for each shade of the ramp, with trials by number."""
    marks = []
    for shade in range(SHADES):
        members = {number for number in places if shades[number] == shade}
        marks.append(make_points("", f"ramp-{shade}", _select(places, members), width))
    return _without_empty(marks)


@dataclass(frozen=True)
class _Pair:
    """Two hyperparameters, and the complete trials that have both."""

    first: str
    second: str
    trials: list[FrozenTrial]

    @property
    def choices(self) -> int:
        """How many of the two are choices, and not numbers."""
        settings = self.trials[0].params
        return sum(isinstance(settings[name], str | bool) for name in (self.first, self.second))

    @property
    def is_varied(self) -> bool:
        """Returns whether enough trials have both, with different values of each."""
        if len(self.trials) < ENOUGH:
            return False
        for name in (self.first, self.second):
            if len({str(trial.params[name]) for trial in self.trials}) == 1:
                return False
        return True


def _choose_pair(complete: Sequence[FrozenTrial], names: Sequence[str]) -> _Pair | None:
    """Chooses two hyperparameters that vary together; None if there are none.

    Args:
        names: the most important hyperparameter first.
    """
    best: _Pair | None = None
    for first, second in itertools.combinations(names, 2):
        trials = [trial for trial in complete if first in trial.params and second in trial.params]
        pair = _Pair(first, second, trials)
        if pair.is_varied and (best is None or pair.choices < best.choices):
            best = pair
            if pair.choices == 0:  # no later pair is preferred to it
                break
    return best


def _format_setting(trial: FrozenTrial, name: str) -> str:
    if name not in trial.params:
        return "–"
    return format_parameter(trial.params[name])


def draw_pair(trials: Sequence[FrozenTrial], names: Sequence[str], axis: Axis) -> Chart | str:
    """Draws trials over the two most important hyperparameters that occur together.

    Prefers two numbers to a number and a choice, and these to two choices.
    """
    pair = _choose_pair(complete_trials(trials), names)
    if pair is None:
        return "No two hyperparameters have been varied together in enough trials yet."
    first = pair.first
    second = pair.second
    early = ended_early(trials)
    numbers = {trial.number for trial in pair.trials}.union(*early.values())
    members = []
    for trial in trials:
        if trial.number in numbers and first in trial.params and second in trial.params:
            members.append(trial)
    x, across = setting_scale(members, first)
    y, up = setting_scale(members, second)
    ticks = [tick for tick in y.ticks if tick.when != "narrow"]
    y = replace(y, ticks=drop_overlapping(ticks, y.low, y.high, PAIR_HEIGHT, upright=True))
    if x.reads == "words":
        across = _scattered(across, members, GOLDEN, 0.4)
    if y.reads == "words":
        up = _scattered(up, members, PLASTIC, 0.4)
    places: dict[int, Point] = {}
    for trial, place_across, place_up in zip(members, across, up, strict=True):
        places[trial.number] = (place_across, place_up)
    worst_first = sorted(pair.trials, key=lambda trial: axis.sign * _value(trial))
    shades = {}
    for rank, trial in enumerate(worst_first):
        shades[trial.number] = SHADES * rank // len(worst_first)
    marks = _early_marks(places, early, places)
    marks += _shaded(_select(places, shades), shades, 10)
    rows = []
    for trial in worst_first[::-1][:PAIR_ROWS]:
        settings = (_format_setting(trial, first), _format_setting(trial, second))
        rows.append((trial.number, *settings, format_value(_value(trial))))
    note = f"The best {len(rows)} of {len(pair.trials)}."
    table = PageTable(("trial", first, second, axis.metric), rows, text_columns=(1, 2), note=note)
    label = f"{len(pair.trials)} complete trials over {first} and {second}, the better the bluer"
    return Chart(label, PAIR_HEIGHT, x, y, marks, table)


def draw_best_lines(
    lines: Mapping[str, Part], metric: str, sign: int, *, over_time: bool
) -> Chart | str:
    """Draws the best value so far of several studies, over their trials or seconds of workers.

    Args:
        lines: when each study improved and when it ended, by label.
    """
    height = 340
    values = []
    positions = []
    for line in lines.values():
        for position, value in line:
            positions.append(position)
            values.append(value)
    if not values:
        return NOTHING_COMPLETE
    axis = Axis.choose(metric, sign, values)
    marks = []
    for index, (label, line) in enumerate(lines.items()):
        if line:
            part = [(position, axis.height(value)) for position, value in _staircase(line)]
            width = 2 + 1.5 * (len(lines) - 1 - index)  # where lines meet, both are seen
            marks.append(Mark(label, STUDIES[index], "line", [part], width=width))
    y = axis.scale_of(values, height)
    if over_time:
        title = "seconds of workers"
        x = plain_scale([0.0, max(positions)], title)
    else:
        title = "trials"
        x = whole_scale(1, int(max(positions)), title)
    rows = []
    for label, line in lines.items():
        for position, value in line[-IMPROVEMENT_ROWS:]:
            rows.append((label, f"{position:.0f}", format_value(value)))
    table = PageTable(("study", title, f"best {axis.metric} so far"), rows, text_columns=(0,))
    label = f"the best {axis.metric} so far of {len(lines)} studies, by {title}"
    return Chart(label, height, x, y, marks, table)


def _staircase(line: Part) -> list[Point]:
    """Returns the corners of a line on which each value holds until the next one."""
    corners = [line[0]]
    for (_, previous), (position, value) in itertools.pairwise(line):
        if value != previous:
            corners.append((position, previous))
        corners.append((position, value))
    return corners


@dataclass(frozen=True)
class _Span:
    """The time that a worker trained a trial."""

    trial: FrozenTrial
    start: datetime
    end: datetime


def draw_timeline(
    trials: Sequence[FrozenTrial], live_trials: Collection[int | None]
) -> Chart | str:
    """Draws a row for each worker, with a bar for each trial that began there.

    Args:
        live_trials: the numbers of the trials that living workers hold. Their bars end now; those
            of other unfinished trials end at the latest time stored with any trial.
    """
    spans_by_worker = _spans_by_worker(trials, live_trials)
    if not spans_by_worker:
        return "No trial has begun yet."
    workers = sorted(spans_by_worker, reverse=True)  # rows are drawn from the bottom up
    all_spans = list(itertools.chain.from_iterable(spans_by_worker.values()))
    first = min(span.start for span in all_spans)
    last = max(span.end for span in all_spans)

    def seconds_of(moment: datetime) -> float:
        return (moment - first).total_seconds()

    bars: dict[str, dict[int, Part]] = {outcome: {} for outcome in BARS}
    notes = []
    rows: list[tuple[object, ...]] = []
    for row, worker in enumerate(workers):
        spans = spans_by_worker[worker]
        for span in spans:
            outcome = shown_state(span.trial, live_trials)
            if outcome in bars:
                corners = [(seconds_of(span.start), row), (seconds_of(span.end), row)]
                bars[outcome][span.trial.number] = corners
        share = idle_share([(span.start, span.end) for span in spans])
        idle = f"{100 * share:.1f}%"
        notes.append(Note(0, row + BAR + 0.02, f"{shorten(worker, 32)} · {idle} idle", "above"))
        seconds = sum((span.end - span.start).total_seconds() for span in spans)
        rows.insert(0, (worker, len(spans), format_duration(seconds), idle))  # as drawn, top first
    marks = []
    for outcome, parts in bars.items():
        marks.append(Mark(outcome, _color(outcome), "bar", [*parts.values()], [*parts], BAR))
    length = max(seconds_of(last), 1.0)
    x = _clock_scale(first, length)
    y = ChartScale(-0.12, len(workers) - 0.12, reads="none")
    label = f"when each of {len(workers)} workers trained which trial"
    table = PageTable(("worker", "trials", "trained for", "idle"), rows, text_columns=(0,))
    return Chart(label, ROW * len(workers) + 8, x, y, _without_empty(marks), table, notes)


def _clock_scale(first: datetime, length: float) -> ChartScale:
    """Returns a horizontal axis of seconds since a moment, with labels of the clock."""
    pattern = "%d %b %H:%M"
    if length < 600:
        pattern = "%H:%M:%S"
    elif length < 86400:
        pattern = "%H:%M"
    ticks = []
    for part in range(6):
        seconds = length * part / 5
        ticks.append(Tick(seconds, (first + timedelta(seconds=seconds)).strftime(pattern)))
    return ChartScale(0.0, length, fit_labels(ticks, 0.0, length), "", "none")


def _spans_by_worker(
    trials: Sequence[FrozenTrial], live_trials: Collection[int | None]
) -> dict[str, list[_Span]]:
    """Returns when each worker trained its trials, in the order of their numbers."""
    started = [trial for trial in trials if trial.datetime_start is not None]
    moments = []
    for trial in started:
        for moment in (trial.datetime_start, trial.datetime_complete):
            if moment is not None:
                moments.append(moment)
    latest = max(moments, default=datetime.min)
    spans: dict[str, list[_Span]] = {}
    for trial in started:
        start = trial.datetime_start or latest
        end = trial.datetime_complete
        if end is None and trial.number in live_trials:
            end = max(datetime.now(), start)
        elif end is None:
            end = latest
        record = TrialRecord(trial)
        if record.rungs:  # its pauses are left out
            trained = timedelta(seconds=sum(record.times.values()))
            if trained:
                end = min(end, start + trained)
        worker = str(record.worker or "unknown worker")
        spans.setdefault(worker, []).append(_Span(trial, start, end))
    return spans


def idle_share(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Computes the share of time without a trial between the first start and the last end."""
    first = min(start for start, _ in spans)
    until = first  # the end of all spans that were counted
    busy = 0.0
    for start, end in sorted(spans):
        busy += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    total = (until - first).total_seconds()
    if total == 0:
        return 0.0
    return 1 - busy / total


def draw_predictions(stored: Predictions) -> Chart | str:
    """Draws predicted and true numbers: over time if they are in that order, else as pairs."""
    predicted = [numbers[0] for numbers in stored.predicted]
    targets = [numbers[0] for numbers in stored.targets]
    if not predicted:
        return "winner.json holds no predictions."
    pairs = list(zip(targets, predicted, strict=True))
    rows = []
    for example, (target, prediction) in enumerate(pairs[:EXAMPLE_ROWS]):
        rows.append((example, format_value(target), format_value(prediction)))
    note = _count_left_out(rows, len(pairs), "examples")
    table = PageTable(("example", "true value", "prediction"), rows, note=note)
    if stored.ordered:
        return _predictions_over_time(targets, predicted, table)
    return _predictions_over_targets(targets, predicted, table)


def _predictions_over_time(
    targets: Sequence[float], predicted: Sequence[float], table: PageTable
) -> Chart:
    """Draws predicted and true numbers as two lines over the examples."""
    height = 280
    marks = [
        Mark("true value", "pruned", "line", [[*enumerate(targets)]], width=2),
        Mark("prediction", "best", "line", [[*enumerate(predicted)]], width=2),
    ]
    x = whole_scale(0, max(1, len(targets) - 1), "example")
    y = plain_scale([*targets, *predicted], upright=True, height=height)
    label = f"predictions and true values of {len(targets)} examples in the order of time"
    return Chart(label, height, x, y, marks, table)


def _predictions_over_targets(
    targets: Sequence[float], predicted: Sequence[float], table: PageTable
) -> Chart:
    """Draws a dot for each example, and the diagonal on which predictions are right."""
    height = 360
    numbers = [*targets, *predicted]
    diagonal = [(end, end) for end in (min(numbers), max(numbers))]
    dots = [[pair] for pair in zip(targets, predicted, strict=True)]
    marks = [
        make_dotted_line("prediction = true value", "pruned", diagonal),
        Mark("best", "best", "dot", dots, width=6),
    ]
    x = plain_scale(numbers, "true value")
    y = plain_scale(numbers, "prediction", upright=True, height=height)
    label = f"predictions over true values of {len(targets)} examples"
    return Chart(label, height, x, y, marks, table)


MOST_ABLATED = 40  # rows of the figure; its table has all


def draw_ablation(stored: Ablation) -> Chart | str:
    """Draws how much worse the winner is without each of its changes, with intervals.

    The change that is needed most is on top.
    """
    error = stored.error or 0.0
    drawn = [(row, row.loss) for row in stored.rows if row.loss is not None][:MOST_ABLATED]
    drawn.reverse()  # rows are drawn from the bottom up
    ends = []
    for _, loss in drawn:
        ends += [loss - error, loss + error]
    if not drawn or not all(map(math.isfinite, ends)):
        return "winner.json holds no losses."
    x = plain_scale([0.0, *ends], "worse by")
    y = ChartScale(-0.5, len(drawn) - 0.3, reads="none")
    marks = [make_dotted_line("", "pruned", [(0, -0.5), (0, len(drawn) - 0.5)])]
    for needed, name, color in ((True, "needed", "best"), (False, "not needed", "complete")):
        dots: list[Part] = []
        intervals: list[Part] = []
        for height, (row, loss) in enumerate(drawn):
            if row.needed is needed:
                dots.append([(loss, height)])
                intervals.append([(loss - error, height), (loss + error, height)])
        marks.append(Mark("", color, "line", intervals, width=2))
        marks.append(Mark(name, color, "dot", dots, width=9))
    notes = []
    for height, (row, _) in enumerate(drawn):
        notes.append(Note(x.low, height + 0.2, shorten(row.name, 32), "above"))
    head = ("hyperparameter", "winner", "default", "worse by", "", "winner.simple.yaml")
    rows = []
    for change in describe_ablation(stored):
        texts = (change.value, change.default, change.loss, change.verdict, change.in_simple)
        rows.append((change.name, *texts))
    table = PageTable(head, rows, text_columns=(0, 4, 5))
    label = "how much worse the winner is without each change"
    return Chart(label, ROW * len(drawn) + 30, x, y, _without_empty(marks), table, notes)
