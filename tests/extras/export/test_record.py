"""Laws of compress.json: it is of one winner and one file, is data, and no link leads out."""

import json

import pytest

from studyloom.extras.export.record import (
    card_section,
    compressed_rows,
    digest_of,
    read_record,
    record_lines,
    write_record,
)
from studyloom.views.page import Section, section_html
from studyloom.views.report import compressed

LATENCY = {"median": 0.1, "low": 0.09, "high": 0.2, "calls": 3}
ROW = {
    "name": "as it is, int8",
    "value": 0.9,
    "drop": 0.01,
    "drop_interval": [-0.01, 0.02],
    "bytes": 1000,
    "parameters": 10,
    "latency": {"1": LATENCY, "64": LATENCY},
}
RECORD = {
    "winner": "w",
    "metric": {"name": "accuracy", "direction": "maximize"},
    "threads": 1,
    "rule": "min bytes",
    "margin": 0.005,
    "original": {**ROW, "name": "PyTorch, eager"},
    "variants": [ROW, {"name": "pruned by 0.5", "note": "<b>no</b>"}],
    "bytes_of_winner": 4000,
    "chosen": {"name": ROW["name"], "bytes": 1000, "medians": {"1": [0.1, 0.2]}},
    "test": {
        "value": 0.89,
        "original": 0.9,
        "difference": -0.01,
        "interval": [-0.02, 0.01],
        "covers": True,
        "examples": 100,
        "within": False,
        "openings": 2,
        "earlier": False,
    },
}
CARD = b"# mine\n\n## Data\n\ntold\n"


@pytest.fixture
def answer(tmp_path):
    (tmp_path / "model_card.md").write_bytes(CARD)
    return {"files": {"winner.pt": "w", "model_card.md": digest_of(CARD)}, "test": {}}


def test_what_is_written_is_read_and_stands_once_in_the_card(tmp_path, answer):
    for _ in range(2):
        write_record(tmp_path, RECORD, b"network", answer)
        answer = json.loads((tmp_path / "winner.json").read_bytes())
    card = (tmp_path / "model_card.md").read_bytes()
    assert card.startswith(CARD.rstrip())
    assert card.count(b"## Made small") == 1
    assert answer["files"]["model_card.md"] == digest_of(card)
    assert read_record(tmp_path, answer) == RECORD | {"digest": digest_of(b"network")}


def test_a_record_of_another_winner_or_file_and_a_damaged_one_are_none(tmp_path, answer):
    write_record(tmp_path, RECORD, b"network", answer)
    assert read_record(tmp_path, {"files": {"winner.pt": "another"}}) is None
    assert read_record(tmp_path, {}) is None
    (tmp_path / "winner.onnx").write_bytes(b"another")
    assert read_record(tmp_path, answer) is None
    damaged = {**RECORD, "variants": [{"name": 3}], "digest": digest_of(b"another")}
    (tmp_path / "compress.json").write_text(json.dumps(damaged))
    assert read_record(tmp_path, answer) is None


def test_a_miss_is_said_as_one_and_a_note_is_no_markup():
    assert "-0.0200 to +0.0100 over examples: not shown to be within" in record_lines(RECORD)[4]
    assert "4.00 × smaller" in record_lines(RECORD)[1]
    assert [row[-1] for row in compressed_rows(RECORD)][2:] == ["chosen", "<b>no</b>"]
    assert "&lt;b&gt;no" in section_html(Section("compressed", "Made small", compressed(RECORD)))
    assert "| as it is, int8 | 0.9000 |" in card_section(RECORD)
