"""The axes of figures: how high a value stands, and which round values are written beside."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from studyloom.metrics import METRICS

LEAST = {"unit": 1e-4, "factors": 1e-12}  # the error, or the value, at which an axis ends


@dataclass(frozen=True)
class Axis:
    """The axis of a metric's values.

    scale: unit counts factors of ten in what is missing to 1, so that 0.99 is as far above 0.9 as 0.9 is above 0, and
    trials that learn nothing do not press all that matters into the uppermost tenth; factors counts those of the value;
    plain takes it as it is.
    """

    metric: str
    scale: str
    sign: int

    @classmethod
    def of(cls, metric: str, sign: int) -> "Axis":
        """That of a metric by name; more is better where sign is 1."""
        known = METRICS.get(metric)
        return cls(
            metric, known.scale if known is not None and known.sign == sign else "plain", sign
        )

    def height(self, value: float) -> float:
        """Where a value stands."""
        if self.scale == "plain":
            return value
        rest = 1.0 - value if self.scale == "unit" else value
        tens = math.log10(max(rest, LEAST[self.scale]))
        return -tens if self.scale == "unit" else tens

    def marks(self, low: float, high: float) -> list[float]:
        """Some round values in a range."""
        found: list[float] = []
        if self.scale == "unit":
            found = [
                1 - digit * 10.0**-power
                for power in range(5)
                for digit in (5, 3, 2, 1)
                if digit * 10.0**-power <= 1
            ]
        elif self.scale == "factors" and low > 0:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            digits = (1, 2, 3, 5) if high < 100 * low else (1,)
            found = [digit * 10.0**power for power in powers for digit in digits]
            found = found[:: math.ceil(len(found) / 8)]
        found = [mark for mark in found if low <= mark <= high]
        if len(found) < 3 and high > low:
            step = 10.0 ** math.floor(math.log10(high - low))
            while high - low < 3 * step:
                step /= 2
            found = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return [float(f"{mark:.10g}") for mark in found] or [low]

    def ticks(self, low: float, high: float) -> dict[str, Any]:
        found = self.marks(low, high)
        return {
            "tickvals": [self.height(mark) for mark in found],
            "ticktext": [f"{mark:g}" for mark in found],
        }

    def drawn(self, values: Collection[float]) -> dict[str, Any]:
        """Range and ticks for some values, in plotly's words."""
        low, high = min(values), max(values)
        bottom, top = self.height(low), self.height(high)
        margin = 0.06 * (top - bottom) or 0.05 * max(1.0, abs(top))
        return {"range": [bottom - margin, top + margin], **self.ticks(low, high)}


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Powers of ten, with their threefold between them where the values span no two; three or four find room."""
    low, high = min(values), max(values)
    digits = (1,) if high >= 100 * low else (1, 3)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in digits]
    found = [mark for mark in found if low <= mark <= high] or [low, high]
    found = found[:: math.ceil(len(found) / 4)]
    return {"tickvals": found, "ticktext": [f"{mark:.3g}" for mark in found], "tickangle": 0}


def whole(count: int) -> dict[str, Any]:
    """An axis of numbers from 1 or 0 on, which has no halves."""
    return {"dtick": 1} if count <= 12 else {"tickformat": "d"}
