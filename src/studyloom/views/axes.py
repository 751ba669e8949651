"""Axes of charts: their scales, and the numbers and labels on them.

A *coordinate* is a position on an axis: a value, or its logarithm (`Axis.coordinate`). A *place* is
where a coordinate is drawn, from 0 to SIZE (`ChartScale.place`).
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from studyloom.metrics import METRICS
from studyloom.text import write_minus

SIZE = 1000  # units of the drawing along each axis
NARROW = 280  # pixels of a horizontal axis on a phone
ROOMY = 860  # pixels of a horizontal axis on a wide screen
LETTER = 7.2  # pixels of a label's letter
GAP = 8  # pixels between two labels
LINE = 22  # pixels between the labels of a vertical axis
SHORT_LABEL = 4  # letters of a label that does not stick out at the ends of an axis
EDGE = 0.04  # the share of an axis at each end, where a long label would stick out
ROUNDING = 1e-6  # of a value; numbers that are closer differ by rounding, also in single precision
STEP_ROUNDING = 1e-9  # of a step; 0.3 counts as a multiple of 0.1
MOST_STEPS = 12  # between the labels of integers
MOST_DIGITS = 17  # that tell any two floats apart


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
        kind: how the script of the report computes a value from a coordinate: `plain` (the same
            number), `whole` (rounded), `tens` (10 to that power), `unit` (1 minus 10 to that
            negative power), `choices` (the one at that position), or `none`.
    """

    low: float
    high: float
    ticks: Sequence[Tick] = ()
    title: str = ""
    kind: str = "plain"
    choices: Sequence[str] = ()

    def place(self, coordinate: float) -> float:
        """Returns where a coordinate is drawn, from 0 to SIZE."""
        span = self.high - self.low
        if span == 0:
            return SIZE / 2
        return SIZE * (coordinate - self.low) / span

    def format_percent(self, coordinate: float) -> str:
        """Returns where a coordinate is drawn, in percent of the axis."""
        return f"{100 * self.place(coordinate) / SIZE:.2f}"

    def edge_class(self, tick: Tick) -> str:
        """Returns the CSS class of a label that would stick out at an end of the axis; else "".

        Labels are centered on their ticks. One that would stick out is aligned with the end of the
        axis.
        """
        share = self.place(tick.coordinate) / SIZE
        if len(tick.label) <= SHORT_LABEL or EDGE < share < 1 - EDGE:
            return ""
        if share < 0.5:
            return " first"
        return " last"

    def clip(self, coordinate: float) -> float:
        """Returns a coordinate, or the nearer end of the axis if it lies beyond."""
        return min(max(coordinate, self.low), self.high)

    @property
    def script_data(self) -> Mapping[str, object]:
        """The data from which the report's script shows the value under the pointer."""
        return {
            "low": self.low,
            "high": self.high,
            "title": self.title,
            "kind": self.kind,
            "choices": self.choices,
        }


def drop_overlapping(
    ticks: Sequence[Tick], low: float, high: float, pixels: float, *, upright: bool = False
) -> Sequence[Tick]:
    """Returns the ticks of an axis, or fewer if their labels would overlap.

    All ticks are tried first, then every second one, every third one and so on until only the
    first and the last are left, and then only the first.

    Args:
        ticks: in the order of their coordinates.
        low: the coordinate at the start of the axis; `high` is at its end.
        pixels: the length of the axis.
        upright: whether the axis is vertical, where labels may not overlap in height.
    """
    span = high - low
    if span == 0:
        span = 1.0
    pixels_per_unit = pixels / span

    def fit_both(left: Tick, right: Tick) -> bool:
        distance = (right.coordinate - left.coordinate) * pixels_per_unit
        if upright:
            return distance >= LINE
        letters_between = (len(left.label) + len(right.label)) / 2  # labels are centered
        return distance >= LETTER * letters_between + GAP

    for stride in range(1, len(ticks)):
        selection = ticks[::stride]
        if all(fit_both(left, right) for left, right in itertools.pairwise(selection)):
            return selection
    return ticks[:1]


def fit_labels(
    ticks: Sequence[Tick], low: float, high: float, pixels: float | None = None
) -> Sequence[Tick]:
    """Returns the ticks of a horizontal axis whose labels fit, each with the screens that show it.

    Args:
        low: the coordinate at the start of the axis; `high` is at its end.
        pixels: the length of the axis, if it is the same on a phone and on a wide screen.
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


def format_ticks(numbers: Sequence[float], digits: int) -> list[str]:
    """Formats the numbers of an axis with so many digits, and with more until they differ."""
    labels: list[str] = []
    for count in range(digits, MOST_DIGITS):
        labels = [write_minus(f"{number:.{count}g}") for number in numbers]
        if len({*labels}) == len({*numbers}):
            break
    return labels


def is_one_value(low: float, high: float) -> bool:
    """Returns True if two numbers, the lower one first, are equal up to rounding."""
    return high - low <= ROUNDING * max(abs(low), abs(high))


def choose_integer_step(span: float) -> int:
    """Returns the smallest of 1, 2, 5, 10, 20, 50, … of which at most MOST_STEPS fill a span."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            step = factor * power
            if span / step <= MOST_STEPS:
                return step
        power *= 10  # 1, 10, 100, …


def choose_round_numbers(low: float, high: float, count: int = 5) -> list[float]:
    """Returns two to `count` or so round numbers between two; only the lower if both are equal.

    A round number is a multiple of 1, 2, 5 or 10 times a power of ten.
    """
    if is_one_value(low, high):
        return [low]
    span = high - low
    exponent = math.floor(math.log10(span / count))
    step = 0.0
    for factor in (1, 2, 5, 10):
        step = factor * 10.0**exponent
        if span / step <= count:
            break
    # The numbers are the multiples of the step from the first to the last one.
    first = math.ceil(low / step - STEP_ROUNDING)
    last = math.floor(high / step + STEP_ROUNDING)
    if last <= first:
        # A single number gives an axis no measure. A higher count leads to a smaller step.
        return choose_round_numbers(low, high, count + 1)
    decimals = -exponent
    return [round(multiple * step, decimals) for multiple in range(first, last + 1)]


def choose_log_numbers(low: float, high: float) -> list[float]:
    """Returns two to four round numbers between two above 0, preferably 0.1, 0.3, 1, 3 and so on.

    Returns the two numbers themselves if no others lie between them.
    """
    digits = [1, 3]
    if high >= 100 * low:
        digits = [1]
    numbers = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in digits:
            number = float(f"{digit * 10.0**power:.10g}")
            if low <= number <= high:
                numbers.append(number)
    if len(numbers) < 2:
        numbers = choose_round_numbers(low, high, 4)
    if len(numbers) < 2:
        numbers = sorted({low, high})
    stride = math.ceil(len(numbers) / 4)
    return numbers[::stride]


def choose_numbers_below_one(low: float, high: float) -> list[float]:
    """Returns the numbers between two whose distance to 1 is round, such as 0.5, 0.9 and 0.98."""
    numbers = []
    for power in range(5):
        for digit in (5, 3, 2, 1):
            number = round(1 - digit * 10.0**-power, 10)
            if low <= number <= high:
                numbers.append(number)
    return numbers


def make_integer_scale(low: float, high: float, title: str = "") -> ChartScale:
    """Returns a horizontal axis of integers, with integer labels."""
    margin = 0.03 * (high - low) + 0.3  # so that a dot at an end is not cut off
    start = low - margin
    end = high + margin
    step = choose_integer_step(high - low)
    first = math.ceil(low / step) * step
    last = math.floor(high)
    ticks = [Tick(number, str(number)) for number in range(first, last + 1, step)]
    return ChartScale(start, end, fit_labels(ticks, start, end), title, kind="whole")


def make_linear_scale(
    values: Sequence[float], title: str = "", *, upright: bool = False, height: int = 300
) -> ChartScale:
    """Returns an axis of numbers, at least one, with round labels.

    Args:
        upright: whether it is the vertical axis, which is `height` pixels long.
    """
    low = min(values)
    high = max(values)
    margin = 0.05 * (high - low)
    if is_one_value(low, high):
        margin = 0.05 * max(1.0, abs(high))
    start = low - margin
    end = high + margin
    numbers = choose_round_numbers(start, end, 6)
    ticks: Sequence[Tick] = [*map(Tick, numbers, format_ticks(numbers, digits=4))]
    if upright:
        ticks = drop_overlapping(ticks, start, end, height, upright=True)
    else:
        ticks = fit_labels(ticks, start, end)
    return ChartScale(start, end, ticks, title)


def make_log_scale(
    values: Sequence[float], title: str = "", pixels: float | None = None
) -> ChartScale:
    """Returns a horizontal axis of values above 0 on which equal steps are equal factors.

    Args:
        pixels: its length, if it is the same on a phone and on a wide screen.
    """
    smallest = min(values)
    largest = max(values)
    is_single = is_one_value(smallest, largest)
    low = math.log10(smallest)
    high = math.log10(largest)
    margin = 0.05 * (high - low)
    if is_single:
        margin = 0.1
    start = low - margin
    end = high + margin
    numbers = choose_log_numbers(smallest, largest)
    all_ticks = [Tick(math.log10(number), write_minus(f"{number:.3g}")) for number in numbers]
    ticks = fit_labels(all_ticks, start, end, pixels)
    if len(ticks) < 2 and not is_single:  # the range lies between two round numbers
        ticks = [Tick(power, write_minus(f"{10**power:.2g}")) for power in (low, high)]
    if title:
        title += LOG
    return ChartScale(start, end, ticks, title, kind="tens")


LOG = ", log"  # ends the title of an axis that is logarithmic
SMALLEST_ERROR = 1e-4  # the distance to 1 at which an axis of the scale `unit` ends
SMALLEST_FACTOR = 1e-12  # the value at which an axis of the scale `factors` ends


@dataclass(frozen=True)
class Axis:
    """The vertical axis of a metric's values.

    Args:
        scale: `unit` is logarithmic in the distance to 1, so that 0.99 is as far above 0.9 as 0.9
            is above 0; trials that learn nothing would otherwise squeeze all the others into the
            top tenth. `factors` is logarithmic in the value, and `plain` linear.
        sign: 1 if more is better, -1 if less is.
    """

    metric: str
    scale: str
    sign: int

    @classmethod
    def choose(cls, metric: str, sign: int, values: Collection[float]) -> "Axis":
        """Returns the axis of a metric, by its name and finite values.

        A metric of studyloom has its own scale. If it cannot have these values, the user has
        another metric of the same name. Any other metric has a logarithmic axis, `factors`, if less
        is better and its values, all above 0, differ by more than a factor of ten. Otherwise its
        axis is linear, `plain`.
        """
        scale = "plain"
        standard = METRICS.get(metric)
        if standard is not None and standard.sign == sign and all(map(standard.can_be, values)):
            scale = standard.scale
        lowest = min(values, default=0)
        highest = max(values, default=0)
        differs_by_factors = lowest > 0 and highest > 10 * lowest
        if scale == "plain" and sign < 0 and differs_by_factors:
            scale = "factors"
        return cls(metric, scale, sign)

    @property
    def title(self) -> str:
        """The metric, which of its values are better, and whether the axis is logarithmic."""
        title = f"{self.metric}, less is better"
        if self.sign > 0:
            title = f"{self.metric}, more is better"
        if self.scale != "plain":
            title += LOG
        return title

    def coordinate(self, value: float) -> float:
        """Returns the coordinate at which a value is drawn."""
        if self.scale == "plain":
            return value
        if self.scale == "unit":
            error = max(1.0 - value, SMALLEST_ERROR)
            return -math.log10(error)
        return math.log10(max(value, SMALLEST_FACTOR))

    def drop_outliers(self, values: Collection[float]) -> list[float]:
        """Returns the values, best first, without those far worse than the best nine tenths.

        A value is dropped if it lies more than three times as far from the best value as the worst
        of these nine tenths. So the nine tenths take at least a third of the axis.
        """
        best_first = sorted(values, key=lambda value: -self.sign * value)
        best = best_first[0]
        count_of_nine_tenths = math.ceil(0.9 * len(best_first))
        worst = best_first[count_of_nine_tenths - 1]
        reach = 3 * abs(self.coordinate(worst) - self.coordinate(best))
        near = []
        for value in best_first:
            is_within_reach = abs(self.coordinate(value) - self.coordinate(best)) <= reach
            # If the nine tenths have one value, nothing else is within reach, not even a value that
            # differs from it by rounding. That one is no outlier.
            differs_by_rounding = is_one_value(min(value, best), max(value, best))
            if is_within_reach or differs_by_rounding:
                near.append(value)
        return near

    def choose_numbers(self, low: float, high: float) -> list[float]:
        """Returns the numbers between `low` and `high` that the axis labels, or only `low`."""
        numbers: list[float] = []
        if self.scale == "unit":
            numbers = choose_numbers_below_one(low, high)
        elif self.scale == "factors" and low > 0:
            numbers = choose_log_numbers(low, high)
        if len(numbers) < 3:
            numbers = choose_round_numbers(low, high, 8)
        return numbers

    def make_scale(self, values: Collection[float], height: int) -> ChartScale:
        """Returns the axis with the range and the labels for some values.

        Args:
            height: its length in pixels.
        """
        low = min(values)
        high = max(values)
        bottom = self.coordinate(low)
        top = self.coordinate(high)
        margin = 0.06 * (top - bottom)
        # Different values share a coordinate if they lie beyond the end of a logarithmic axis.
        has_no_length = bottom == top or is_one_value(low, high)
        if has_no_length:
            margin = 0.05 * max(1.0, abs(top))
        start = bottom - margin
        end = top + margin
        numbers = self.choose_numbers(low, high)
        if self.scale == "factors" and not has_no_length:
            # A number just beyond the best value is a measure for it.
            numbers = self.choose_numbers(10**start, 10**end)
        coordinates = map(self.coordinate, numbers)
        all_ticks = [*map(Tick, coordinates, format_ticks(numbers, digits=6))]
        ticks = drop_overlapping(all_ticks, start, end, height, upright=True)
        kind = self.scale
        if kind == "factors":
            kind = "tens"  # so does `ChartScale` call an axis with coordinates to the base of ten
        return ChartScale(start, end, ticks, self.title, kind)
