"""Results of studies for tests that show them."""

from pathlib import Path
from typing import Any

import yaml

from studyloom.training.checkpoint import pack_weights
from studyloom.winner.result import Result, from_document

ROW = {"trial": 0, "params": {}, "search_value": 0.5}
DATA = {"digest": "", "test_digest": "", "shape": None, "outputs": None, "mean": 0.0, "std": 1.0}


def document_of(**given: Any) -> dict[str, Any]:
    """What winner.json holds if a test says some of it."""
    won = ROW | given.pop("winner", {})
    rows = [ROW | row for row in given.pop("candidates", [won])]
    whole = {
        "study": "toy",
        "stage": "toy/final-training",
        "trials": 1,
        "metric": {"name": "accuracy", "direction": "maximize"},
        "rule": "max accuracy",
        **given,
        "winner": won,
        "candidates": rows,
    }
    if whole.get("test"):
        whole["test"] = {"intervals_cover": "seeds", **whole["test"]}
    if whole.get("data") is not None:
        whole["data"] = DATA | whole["data"]
    return whole


def result_of(**given: Any) -> Result:
    """The result of `document_of`."""
    return from_document(document_of(**given), Result)


def write_winner(folder: Path, model: Any, state: dict[str, Any], **facts: Any) -> Path:
    """Writes the files of a winner: a section that builds it, its weights, facts of its data."""
    folder.mkdir(exist_ok=True)
    files = {
        "winner.yaml": yaml.safe_dump({"model": model}).encode(),
        "winner.pt": pack_weights(state),
    }
    result_of(data=facts).write(folder, files)
    return folder
