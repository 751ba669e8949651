"""The parameters of a W&B sweep file: each distribution as a range or list of a search.

A parameter is fixed, searched, or holds further parameters: `parameters: {optimizer: {parameters:
{lr: …}}}`. A distribution without a counterpart is an error, which names the nearest one.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from studyloom.errors import ConfigError
from studyloom.extras.tune.value_ranges import Scalar, Values
from studyloom.text import nearest

# Keys of a parameter that say what its values are.
KEYS = (
    *("value", "values", "probabilities", "distribution", "min", "max", "mu", "sigma", "q", "a"),
    *("b", "parameters", "desc", "description"),
)
RANGES = "values, or min and max with distribution uniform or log_uniform_values"
MOST_NESTED = 20  # parameters within parameters


@dataclass(frozen=True)
class Parameter:
    """A parameter of a sweep, which is searched or fixed.

    Attributes:
        path: the keys that lead to it: (lr,), or (optimizer, lr) if it is nested.
        values: what is searched; None for a fixed parameter.
        items: the value of a fixed parameter, or the items of a list, as the file has them.
    """

    path: tuple[str, ...]
    values: Values | None
    items: tuple[object, ...] = ()

    @property
    def key(self) -> str:
        """The place of the parameter in the file, for messages."""
        return f"parameters.{'.parameters.'.join(self.path)}"

    def find_item(self, text: str) -> object:
        """Returns the value that a text in a command stands for, as the file has it."""
        if self.values is None:
            return self.items[0]
        if self.values.kind == "int":
            return int(text)
        if self.values.kind == "float":
            return float(text)
        for item in self.items:
            if text in (format_item(item), str(item).lower()):
                return item
        raise ValueError(f"{self.key} has no value {text}")


def format_item(item: object) -> str:
    """Writes a value as W&B writes it into a command, which is Python's way: True, None, [1, 2]."""
    return str(item)


@dataclass
class ParameterReader:
    """Reads the section `parameters` of a sweep file, and collects its errors.

    Attributes:
        parameters: those that were read, in the order of the file.
        errors: a line for each parameter that is wrong, or that has no counterpart.
    """

    parameters: list[Parameter] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def read(self, section: object, path: tuple[str, ...] = ()) -> None:
        """Reads the parameters of a section.

        Args:
            section: the value of the key `parameters`.
            path: the keys of the parameters that it is nested in.
        """
        place = "parameters"
        for name in path:
            place += f".{name}.parameters"
        if not isinstance(section, Mapping) or not section or len(path) > MOST_NESTED:
            self.errors.append(
                f"{place} must be a mapping of names to parameters, such as {{lr: {{min: 0.001, "
                f"max: 0.1}}}}; got {section!r}"
            )
            return
        for name, spec in section.items():
            self._read_parameter(spec, (*path, str(name)))

    def _read_parameter(self, spec: object, path: tuple[str, ...]) -> None:
        """Reads a parameter, or those that are nested in it."""
        key = f"parameters.{'.parameters.'.join(path)}"
        if not isinstance(spec, Mapping):
            self.errors.append(f"{key} must be a mapping, such as {{value: {spec}}}; got {spec!r}")
            return
        for name in spec:
            if name not in KEYS:
                self.errors.append(f"{key}.{name}: no such key of a parameter{nearest(name, KEYS)}")
        if "parameters" in spec:
            self.read(spec["parameters"], path)
            return
        try:
            self.parameters.append(_convert(spec, path, key))
        except ConfigError as error:
            self.errors += error.errors


def _convert(spec: Mapping[object, object], path: tuple[str, ...], key: str) -> Parameter:
    """Converts the mapping of a parameter.

    Raises:
        ConfigError: it is wrong, or has no counterpart.
    """
    distribution = spec.get("distribution")
    if distribution is None:
        distribution = _infer_distribution(spec, key)
    if distribution == "constant":
        if "value" not in spec:
            raise ConfigError(f"{key}.value: missing; a constant has a value")
        return Parameter(path, None, (spec["value"],))
    if distribution in ("categorical", "categorical_w_probabilities"):
        return _convert_list(spec, path, key)
    convert = CONVERTERS.get(str(distribution))
    if convert is None:
        raise _refuse_distribution(spec, str(distribution), key)
    values = convert(_Numbers(spec, key))
    low, high = map(float, values.items)
    if low == high:
        return Parameter(path, None, (values.items[0],))
    if low > high:
        raise ConfigError(f"{key}: min must be below max; got {low:g} and {high:g}")
    if values.log and low <= 0:
        raise ConfigError(f"{key}.min must be above 0 for {distribution}; got {low:g}")
    return Parameter(path, values)


def _infer_distribution(spec: Mapping[object, object], key: str) -> str:
    """Returns the distribution that W&B takes for a parameter without that key."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    if "min" not in spec or "max" not in spec:
        raise ConfigError(f"{key} must have value, {RANGES}; got {dict(spec)!r}")
    if type(spec["min"]) is int and type(spec["max"]) is int:
        return "int_uniform"
    return "uniform"


def _refuse_distribution(spec: Mapping[object, object], distribution: str, key: str) -> ConfigError:
    """Returns the error that a distribution has no counterpart, or does not exist."""
    place = f"{key}.distribution: {distribution}"
    mu = spec.get("mu", 0)
    sigma = spec.get("sigma", 1)
    if distribution in ("normal", "q_normal", "log_normal", "q_log_normal"):
        counterpart = "uniform"
        low = "mu - 2 sigma"
        high = "mu + 2 sigma"
        if isinstance(mu, int | float) and isinstance(sigma, int | float):
            low = f"{mu - 2 * sigma:g}"
            high = f"{mu + 2 * sigma:g}"
        if distribution.endswith("log_normal"):
            counterpart = "log_uniform"
        return ConfigError(
            f"{place} has no counterpart, since a search needs bounds; the nearest is "
            f"{{distribution: {counterpart}, min: {low}, max: {high}}}, two sigma around mu"
        )
    if distribution in ("beta", "q_beta"):
        return ConfigError(
            f"{place} has no counterpart; the nearest is {{distribution: uniform, min: 0.0, max: "
            "1.0}"
        )
    names = [*CONVERTERS, "categorical", "constant"]
    return ConfigError(f"{place} is no distribution of W&B{nearest(distribution, names)}")


def _convert_list(spec: Mapping[object, object], path: tuple[str, ...], key: str) -> Parameter:
    """Converts a list of values; of values that are no plain scalars, their texts are searched."""
    items = spec.get("values")
    if not isinstance(items, list) or not items:
        raise ConfigError(f"{key}.values must be a list of values; got {items!r}")
    probabilities = spec.get("probabilities")
    if isinstance(probabilities, list) and len(set(probabilities)) > 1:
        raise ConfigError(
            f"{key}.probabilities has no counterpart, since the search finds by itself what is "
            "good; the nearest is values without probabilities, all equally likely"
        )
    distinct: list[Any] = []
    for item in items:
        if not any(item == other and type(item) is type(other) for other in distinct):
            distinct.append(item)
    if len(distinct) == 1:
        return Parameter(path, None, (distinct[0],))
    kinds = {type(item) for item in distinct}
    scalars: list[Scalar] = [format_item(item) for item in distinct]
    if kinds <= {int, float} or kinds == {bool} or kinds == {str}:
        scalars = distinct
    if len(set(scalars)) < len(scalars):
        raise ConfigError(f"{key}.values has values that a command cannot tell apart: {items!r}")
    return Parameter(path, Values("choice", tuple(scalars)), tuple(distinct))


def _is_number(value: object) -> bool:
    """Returns True for an int or float that is finite."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def read_number(key: str, value: object) -> float:
    """Returns the number that a key of a sweep file has.

    Raises:
        ConfigError: the value is no number.
    """
    if isinstance(value, str):  # YAML reads 1e-4, without a point, as a text
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, int | float) and _is_number(value):
        return value
    raise ConfigError(f"{key} must be a number; got {value!r}")


@dataclass(frozen=True)
class _Numbers:
    """The numbers of a parameter's mapping.

    Attributes:
        key: the place of the parameter, for messages.
    """

    spec: Mapping[object, object]
    key: str

    def read(self, name: str, default: float | None = None) -> float:
        """Returns a number of the mapping.

        Raises:
            ConfigError: it is missing without a default, or is no number.
        """
        return read_number(f"{self.key}.{name}", self.spec.get(name, default))

    @property
    def low(self) -> float:
        """The key `min`."""
        return self.read("min")

    @property
    def high(self) -> float:
        """The key `max`."""
        return self.read("max")


def _uniform(numbers: _Numbers) -> Values:
    return Values("float", (float(numbers.low), float(numbers.high)))


def _int_uniform(numbers: _Numbers) -> Values:
    return Values("int", (int(numbers.low), int(numbers.high)))


def _q_uniform(numbers: _Numbers) -> Values:
    """Converts a range whose values are multiples of q."""
    q = numbers.read("q", 1)
    if q <= 0:
        raise ConfigError(f"{numbers.key}.q must be above 0; got {q}")
    low = round(numbers.low / q) * q
    high = round(numbers.high / q) * q
    if isinstance(q, int):
        return Values("int", (int(low), int(high)), step=q)
    return Values("float", (float(f"{low:.12g}"), float(f"{high:.12g}")), step=q)


def _log_uniform_values(numbers: _Numbers) -> Values:
    return Values("float", (float(numbers.low), float(numbers.high)), log=True)


def _log_uniform(numbers: _Numbers) -> Values:
    """Converts a range whose bounds are natural logarithms."""
    return Values("float", (_exp(numbers, "min"), _exp(numbers, "max")), log=True)


def _inv_log_uniform(numbers: _Numbers) -> Values:
    """Converts a range whose bounds are natural logarithms of the inverse value."""
    return Values("float", (1 / _exp(numbers, "max"), 1 / _exp(numbers, "min")), log=True)


def _exp(numbers: _Numbers, name: str) -> float:
    """Returns e to the power of a bound, with nine digits."""
    exponent = numbers.read(name)
    if abs(exponent) > 300:
        raise ConfigError(
            f"{numbers.key}.{name} is a natural logarithm, and e to the power {exponent:g} is out "
            "of range; for plain bounds use log_uniform_values"
        )
    return float(f"{math.exp(exponent):.9g}")


def _q_log_uniform_values(numbers: _Numbers) -> Values:
    return _quantize(numbers, numbers.low, numbers.high)


def _q_log_uniform(numbers: _Numbers) -> Values:
    return _quantize(numbers, _exp(numbers, "min"), _exp(numbers, "max"))


def _quantize(numbers: _Numbers, low: float, high: float) -> Values:
    """Converts a logarithmic range of integers; one with other steps has no counterpart."""
    q = numbers.read("q", 1)
    if q == 1:
        return Values("int", (max(1, round(low)), round(high)), log=True)
    raise ConfigError(
        f"{numbers.key}.q: {q} has no counterpart, since a logarithmic range has steps of 1 or "
        "none; the nearest are q: 1, distribution q_uniform, or a list of values"
    )


CONVERTERS: Mapping[str, Callable[[_Numbers], Values]] = {
    "uniform": _uniform,
    "int_uniform": _int_uniform,
    "q_uniform": _q_uniform,
    "log_uniform_values": _log_uniform_values,
    "log_uniform": _log_uniform,
    # The logarithm of 1 / x is uniform if that of x is.
    "inv_log_uniform_values": _log_uniform_values,
    "inv_log_uniform": _inv_log_uniform,
    "q_log_uniform_values": _q_log_uniform_values,
    "q_log_uniform": _q_log_uniform,
}
