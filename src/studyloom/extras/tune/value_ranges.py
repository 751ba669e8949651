"""The values that an argument on the command line is searched over: a range or a list.

`1e-4:1e-1:log` is a range of floats, `16:256` one of integers, `0:100:10` one with a step, and
`relu,gelu` a list. After `@` may follow the value of the baseline: `16:256@64`.
"""

import math
import re
from dataclasses import dataclass

from studyloom.errors import ConfigError

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
INTEGER = re.compile(r"[-+]?\d{1,300}")  # a longer number is an infinite float
RANGE = re.compile(
    rf"(?P<low>{NUMBER}):(?P<high>{NUMBER})(?::(?P<how>log|{NUMBER}))?(?:@(?P<default>.*))?"
)
# An item of a list has no blank, quote or bracket, as the items of [1, 2] or {'a': 1, 'b': 2}.
LIST = re.compile(r"[^\s,\[\](){}'\"]+(?:,[^\s,\[\](){}'\"]+)+")
BOOLEANS = {"true": True, "false": False}

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Values:
    """The values of a hyperparameter.

    Attributes:
        kind: int or float for a range, choice for a list.
        items: the low and the high end of a range, or the items of a list.
        log: whether the range is searched on a logarithmic scale.
        step: the distance of neighboring values in a range; None for every value.
        default: the value of the baseline; None if it is not given.
    """

    kind: str
    items: tuple[Scalar, ...]
    log: bool = False
    step: float | None = None
    default: Scalar | None = None

    def to_space(self) -> dict[str, object]:
        """Returns the range in the language of `space`, such as {int: [16, 256], log: true}."""
        spec: dict[str, object] = {self.kind: [*self.items]}
        if self.log:
            spec["log"] = True
        if self.step is not None:
            spec["step"] = self.step
        if self.default is not None:
            spec["default"] = self.default
        return spec

    @property
    def are_booleans(self) -> bool:
        """True for the list true,false in either order."""
        return self.kind == "choice" and {str(item).lower() for item in self.items} == {*BOOLEANS}


def parse_values(option: str, text: str) -> Values | None:
    """Parses the text of an argument's value; None if it is neither a range nor a list.

    Args:
        option: the argument, such as --lr, for messages.

    Raises:
        ConfigError: it looks like a range or a list, and cannot be one.
    """
    match = RANGE.fullmatch(text)
    if match is not None:
        return _parse_range(option, text, match)
    return _parse_list(option, text)


def _parse_range(option: str, text: str, match: re.Match[str]) -> Values:
    """Parses a range; its numbers are integers if all of them are written as integers."""
    texts = [match["low"], match["high"]]
    how = match["how"]
    if how is not None and how != "log":
        texts.append(how)
    kind = "int"
    convert: type[int] | type[float] = int
    if not all(INTEGER.fullmatch(number) for number in texts):
        kind = "float"
        convert = float
    low, high = convert(match["low"]), convert(match["high"])
    if not math.isfinite(low) or not math.isfinite(high):
        raise _refuse(option, text, "the ends of a range must be finite")
    if low >= high:
        raise _refuse(option, text, f"the low end of a range must be below its high end {high}")
    if how == "log" and low <= 0:
        raise _refuse(option, text, "a range with :log must begin above 0")
    step = None
    if len(texts) > 2:
        step = convert(texts[2])
        if step <= 0:
            raise _refuse(option, text, "the step of a range must be above 0")
    default = None
    if match["default"] is not None:
        try:
            default = convert(match["default"])
        except ValueError:
            raise _refuse(
                option, text, f"the baseline after @ must be a number of kind {kind}"
            ) from None
    return Values(kind, (low, high), log=how == "log", step=step, default=default)


def _parse_list(option: str, text: str) -> Values | None:
    """Parses a list of two or more items; None if the text is none."""
    if LIST.fullmatch(text) is None:
        return None
    item_texts = text.split(",")
    last_item, at_sign, default_text = item_texts[-1].rpartition("@")
    has_default = bool(at_sign) and default_text in [*item_texts[:-1], last_item]
    if has_default:
        item_texts[-1] = last_item
    items = [convert_item(item) for item in item_texts]
    if len(set(items)) < len(items):
        raise _refuse(option, text, "a list must not have a value twice")
    default = None
    if has_default:
        default = convert_item(default_text)
    return Values("choice", tuple(items), default=default)


def convert_item(text: str) -> Scalar:
    """Returns an item of a list as a number, if the script would get the same number."""
    if INTEGER.fullmatch(text) and str(int(text)) == text:
        return int(text)
    if re.fullmatch(NUMBER, text) and not INTEGER.fullmatch(text):
        return float(text)
    return text


def _refuse(option: str, text: str, reason: str) -> ConfigError:
    """Returns the error that a text looks like a range or list, and is none."""
    name = option.lstrip("-+")
    return ConfigError(
        f"{option} {text}: {reason}; if it is a plain value of the script, add --fixed {name} "
        "before the script"
    )
