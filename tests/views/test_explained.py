"""The section that explains the winner, from whatever winner.json holds."""

from results import result_of

from studyloom.views.explanations import render_explanations
from studyloom.views.page import render_section

PIXEL = "data:image/png;base64,iVBORw0KGgo="
BIN = {"low": 0.9, "high": 1.0, "count": 9, "confidence": 0.97, "accuracy": 0.9}
WINNER = {
    "metric": {"name": "accuracy", "direction": "maximize"},
    "classes": ["praise", "blame"],
}
EXPLANATIONS = {
    "occlusions": [{"index": 7, "label": 4, "predicted": 9, "image": PIXEL, "largest_loss": 0.42}],
    "calibration": {
        "error": 0.07,
        "confidence": 0.97,
        "accuracy": 0.9,
        "bins": [BIN | {"interval": [0.6, 0.98]}],
    },
    "groups": {
        "grouped_by": "group",
        "omitted": 3,
        "rows": [{"name": "theo", "count": 50, "value": 0.9, "interval": [0.8, 0.95]}],
    },
    "texts": [
        {
            "index": 3,
            "label": 1,
            "predicted": 0,
            "probabilities": [0.2, 0.8],
            "margin": 1.3863,
            "words": ["not", "so", "good", "of", "it", "good"],
            "changes": [-0.4, 0.01, 2.0, -0.02, 0.0, 2.0],
            "unexamined_words": 4,
        }
    ],
    "columns": [{"name": "age", "worse_by": 0.1, "interval": [0.05, 0.15]}],
}


def parts_of(explanations):
    """The parts of the only section, by their key."""
    result = result_of(**WINNER, explanations=explanations)
    (section,) = render_explanations(result)
    return {part.key: part for part in section.blocks}


def test_each_explanation_is_a_part_of_one_section():
    parts = parts_of(EXPLANATIONS)
    assert [*parts] == ["misled", "words", "calibration", "groups", "columns"]
    _, images = parts["misled"].blocks
    (image,) = images.items
    assert (image.caption + image.strong, image.remark) == ("4 → 9", "0.4200")
    _, text = parts["words"].blocks
    assert text.title == "blame → praise"
    assert text.remark == "test text 3, probabilities 0.2000 and 0.8000, in all +1.3863"
    shaded, listed = text.blocks
    assert shaded.runs == [("not", -0.2), ("so", 0), ("good", 1), ("of it", 0), ("good", 1)]
    assert listed.items == [
        "for praise: good +2.00",
        "for blame: not −0.40",
        "4 further words were not tested",
    ]
    caption, _ = parts["calibration"].blocks
    assert "expected calibration error 0.0700" in caption.text
    assert parts["groups"].title == "Group by group"
    _, table = parts["groups"].blocks
    assert table.rows == [("theo", 50, "0.9000", "0.8000 to 0.9500")]
    assert table.note.startswith("3 further")
    _, table = parts["columns"].blocks
    assert table.rows == [("age", "0.1000", "0.0500 to 0.1500")]


def test_a_result_without_explanations_has_no_section_of_them():
    assert [*render_explanations(result_of(**WINNER))] == []
    assert [*render_explanations(result_of(**WINNER, explanations={}))] == []


def test_words_are_marked_by_more_than_color_and_hostile_words_are_text():
    words = ["<img src=x>", "a\x1b[2J\u202eb", "\ud800", "and", "bad"]
    text = EXPLANATIONS["texts"][0] | {"words": words, "changes": [1.0, 1.0, 1.0, 0.1, -0.5]}
    (section,) = render_explanations(result_of(**WINNER, explanations={"texts": [text]}))
    page = str(render_section(section))
    assert '<mark class="off" style="--s:1.00">&lt;img src=x&gt;</mark>' in page
    assert '<mark class="right" style="--s:0.50">bad</mark>' in page
    assert "<mark>and" not in page
    assert "<img" not in page
    assert "a␛[2J�b" in page
    page.encode()
