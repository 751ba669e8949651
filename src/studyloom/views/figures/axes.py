"""The axes of figures: the height at which a value is drawn, and the round values to label."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from studyloom.metrics import METRICS
from studyloom.views.figures.chart import Scale, Tick, spaced

LEAST = {"unit": 1e-4, "factors": 1e-12}  # the error, or the value, at which an axis ends


@dataclass(frozen=True)
class Axis:
    """The axis of a metric's values.

    Args:
        metric: the metric's name.
        scale: how values are spread. `unit` draws factors of ten in the distance to 1, so that
            0.99 is as far above 0.9 as 0.9 is above 0; trials that learn nothing would otherwise
            squeeze all the others into the top tenth. `factors` draws factors of ten in the value,
            and `plain` the value itself.
        sign: 1 if higher is better, -1 if lower is.
    """

    metric: str
    scale: str
    sign: int

    @classmethod
    def of(cls, metric: str, sign: int) -> "Axis":
        """Returns the axis of a metric by name; the `scale` is plain for an unknown one.

        Args:
            metric: the metric's name.
            sign: 1 if higher is better, -1 if lower is.
        """
        known = METRICS.get(metric)
        scale = known.scale if known is not None and known.sign == sign else "plain"
        return cls(metric, scale, sign)

    def height(self, value: float) -> float:
        """Returns the coordinate at which a value is drawn."""
        if self.scale == "plain":
            return value
        rest = 1.0 - value if self.scale == "unit" else value
        tens = math.log10(max(rest, LEAST[self.scale]))
        return -tens if self.scale == "unit" else tens

    def marks(self, low: float, high: float) -> list[float]:
        """Returns some round values between `low` and `high`; `low` alone if there are none.

        Args:
            low: the lowest value that is drawn.
            high: the highest.

        Returns:
            At least one value, in ascending order; `low` alone if no round value is between them.
        """
        marks: list[float] = []
        if self.scale == "unit":
            marks = [
                1 - digit * 10.0**-power
                for power in range(5)
                for digit in (5, 3, 2, 1)
                if digit * 10.0**-power <= 1
            ]
        elif self.scale == "factors" and low > 0:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            digits = (1, 2, 3, 5) if high < 100 * low else (1,)
            marks = [digit * 10.0**power for power in powers for digit in digits]
            marks = marks[:: math.ceil(len(marks) / 8)]
        marks = [mark for mark in marks if low <= mark <= high]
        if len(marks) < 3 and high > low:
            step = 10.0 ** math.floor(math.log10(high - low))
            while high - low < 3 * step:
                step /= 2
            marks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return [float(f"{mark:.10g}") for mark in marks] or [low]

    def scale_of(self, values: Collection[float], height: int) -> Scale:
        """Returns the vertical axis for some values.

        Args:
            values: what lies on it; at least one.
            height: of the drawing in pixels.
        """
        low, high = min(values), max(values)
        bottom, top = self.height(low), self.height(high)
        margin = 0.06 * (top - bottom) or 0.05 * max(1.0, abs(top))
        ends = bottom - margin, top + margin
        ticks = [Tick(self.height(mark), f"{mark:g}") for mark in self.marks(low, high)]
        shown = spaced(ticks, *ends, height, upright=True)
        reads = {"unit": "unit", "factors": "tens", "plain": "plain"}[self.scale]
        return Scale(*ends, shown, f"validation {self.metric}", reads)
