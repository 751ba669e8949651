"""Reads cells of Optuna's tables with a check of their types, since SQLite stores any type.

Another program may have written anything. A cell that neither Optuna nor studyloom can have written
is an error that names its table and trial.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import StudyDirection

from studyloom.errors import StorageError
from studyloom.storage.attributes import PICKLE_PREFIXES
from studyloom.storage.optuna_internals import (
    CONSTRAINT,
    METRIC_NAMES,
    TrialIntermediateValueModel,
    TrialValueModel,
)
from studyloom.text import one_line, shorten

# The exceptions that are raised for a cell that neither Optuna nor studyloom can have written.
CELL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def unknown_cell(error: Exception, place: str = "") -> StorageError:
    """Returns the error of a cell that neither Optuna nor studyloom can have written.

    Args:
        error: The exception that was raised when the cell was read.
        place: The table and the trial of the cell, if they are known.
    """
    # An assertion of Optuna has no text: it fails for a value that is NULL.
    problem = shorten(one_line(str(error) or "a number is missing"), 200)
    if place:
        reason = f"{place}: {problem}"
    else:
        reason = problem
    return StorageError(
        f"storage.url: a cell of the database cannot be read: {reason}; another program has "
        "written it; put back a copy of the database from before"
    )


def check_integer(value: object, column: str) -> int:
    if type(value) is not int:
        raise TypeError(f"{column} must be an integer; got {value!r}")
    return value


def check_text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{column} must be text; got {value!r}")
    return value


def check_directions(directions: Sequence[StudyDirection]) -> None:
    """Checks the directions of a study; raises StorageError if it has none."""
    if not directions or StudyDirection.NOT_SET in directions:
        error = TypeError("the study has no direction, MINIMIZE or MAXIMIZE")
        raise unknown_cell(error, "study_directions")


def _check_constraints(values: object) -> None:
    """Checks the constraints of a trial, of which Optuna compares each with 0."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        raise TypeError(f"constraints must be numbers; got {values!r}")


# Each function below takes the cells of a row, and returns a key and its value.


def read_value(objective: object, stored_value: Any, kind: Any) -> tuple[int, float]:
    value = TrialValueModel.stored_repr_to_value(stored_value, kind)
    return check_integer(objective, "objective"), float(value)


def read_report(step: object, stored_value: Any, kind: Any) -> tuple[int, float]:
    value = TrialIntermediateValueModel.stored_repr_to_intermediate_value(stored_value, kind)
    return check_integer(step, "step"), float(value)


def read_attribute(key: object, value_json: str) -> tuple[str, Any]:
    return check_text(key, "key"), json.loads(value_json)


def read_system_attribute(key: object, value_json: str) -> tuple[str, Any]:
    """Reads the key and value of a system attribute, and checks a constraint.

    The value of a pickle is not read; it is None.
    """
    name = check_text(key, "key")
    if name.startswith(PICKLE_PREFIXES):
        return name, None
    value = json.loads(value_json)
    if name == CONSTRAINT:  # all constraints of the trial, or None
        if value is not None:
            _check_constraints(value)
    elif name.startswith(f"{CONSTRAINT}:"):  # one constraint, whose name follows
        _check_constraints([value])
    return name, value


def fitting_system_attrs(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the system attributes of a study without metric names of a wrong type.

    Metric names of a wrong type, which another program has stored, count as missing.
    """
    names = attributes.get(METRIC_NAMES)
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if are_names:
        return dict(attributes)
    return {key: value for key, value in attributes.items() if key != METRIC_NAMES}
