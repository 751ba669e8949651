"""Answers of studies for tests that show them."""

from typing import Any

from studyloom.winner.answer import Answer, from_document

ROW = {"trial": 0, "params": {}, "search_value": 0.5}
DATA = {"digest": "", "test_digest": "", "shape": None, "outputs": None, "mean": 0.0, "std": 1.0}


def document_of(**given: Any) -> dict[str, Any]:
    """What winner.json holds if a test says some of it."""
    won = ROW | given.pop("winner", {})
    rows = [ROW | row for row in given.pop("candidates", [won])]
    whole = {
        "study": "toy",
        "stage": "toy/retraining",
        "trials": 1,
        "metric": {"name": "accuracy", "direction": "maximize"},
        "rule": "max accuracy",
        **given,
        "winner": won,
        "candidates": rows,
    }
    if whole.get("test"):
        whole["test"] = {"interval": {"covers": "seeds"}, **whole["test"]}
    if whole.get("data") is not None:
        whole["data"] = DATA | whole["data"]
    return whole


def answer_of(**given: Any) -> Answer:
    """The answer of `document_of`."""
    return from_document(document_of(**given), Answer)
