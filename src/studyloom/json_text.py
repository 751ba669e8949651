"""JSON for programs: one line, with null for numbers that are not finite."""

import json
import math
from collections.abc import Mapping


def to_json(document: object) -> str:
    """Formats a document as one line of JSON, with null for numbers that are not finite."""
    return json.dumps(_replace_nonfinite(document), allow_nan=False, default=str)


def _replace_nonfinite(value: object) -> object:
    """Replaces numbers that are not finite by None in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {str(key): _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
