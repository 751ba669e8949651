"""Words that misled a network whose reasons are known, wherever a text is in its input."""

import json
from dataclasses import replace

import pytest
import torch
from test_explanations import job
from torch import nn
from torch.utils.data import Dataset

from studyloom.data import Datasets, Split, Tokens
from studyloom.errors import DataError, UnfitData
from studyloom.extras.explain import explain
from studyloom.extras.explain.explain import MAX_WORDS as READ
from studyloom.extras.explain.explain import explain_texts
from studyloom.metrics import METRICS
from studyloom.training.trainer import evaluate_network
from studyloom.winner.predictions import MeasuredNetwork
from studyloom.winner.result import to_document
from studyloom.winner.statistics import Outputs

WORDS = ("", "[unknown]", "good", "bad", "the", "very")
# Two numbers of another kind, and a text of up to six words.
ROWS = torch.tensor(
    [[9, 9, 2, 3, 4, 2, 0, 0], [9, 9, 4, 4, 2, 4, 5, 0], [9, 9, 2, 0, 0, 0, 0, 0]],
    dtype=torch.int64,
)
TABLE = torch.tensor([1.0, 2.0])


class Judge(nn.Module):
    """Adds 2 to the logit of class 1 for each `good`, -1 for each `bad`, 3 for a last `very`."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, text, table=None):
        words = text[:, 2:]
        last = words.gather(1, ((words > 0).sum(1) - 1).clamp(min=0)[:, None])[:, 0]
        logit = 2.0 * (words == 2).sum(1) - 1.0 * (words == 3).sum(1) + 3.0 * (last == 5)
        return self.scale * torch.stack([torch.zeros(len(words)), logit], 1)


class Texts(Dataset):
    """Items that `make` makes of a text; all are of class 0."""

    def __init__(self, make, tokens):
        self.make, self.tokens = make, tokens

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return *self.make(ROWS[index]), 0


FORMS = {
    "only the text": (lambda row: (row,), (0,)),
    "an array": (lambda row: (row.numpy(),), (0,)),
    "next to a table": (lambda row: (row, TABLE), (0,)),
    "in a pair": (lambda row: ((row, TABLE),), (0, 0)),
    "in a dict": (lambda row: ({"table": TABLE, "text": row},), (0, "text")),
}


def part_of(form):
    if form == "in memory":
        labels = torch.zeros(len(ROWS), dtype=torch.int64)
        return Split(ROWS.clone(), labels, 2, "toy", tokens=Tokens(WORDS, first=2))
    make, path = FORMS[form]
    dataset = Texts(make, Tokens(WORDS, 2, path))
    return Datasets(dataset, test=dataset, validation=1, outputs=2, num_workers=1).test()


def texts_of(part, errors=(0, 1, 2)):
    labels = torch.zeros(len(part), dtype=torch.int64)
    return explain_texts(
        lambda examples: evaluate_network(job(), Judge(), examples)[0],
        part,
        part.tokens,
        labels,
        errors,
    )


def test_a_word_has_the_change_that_its_absence_makes():
    """The text may be anywhere in an item, which is not changed."""
    before = ROWS.clone()
    for form in ("in memory", *FORMS):
        first, second = texts_of(part_of(form))
        assert [*first.words] == ["good", "bad", "the", "good"], form
        assert [*first.changes] == [4.0, -1.0, 0.0, 4.0]  # both `good` at once
        assert first.margin == 3.0
        assert (first.index, first.label, first.predicted, first.unexamined_words) == (0, 0, 1, 0)
        assert [*first.probabilities] == pytest.approx([0.0474, 0.9526], abs=1e-4)
        assert [*second.words] == ["the", "the", "good", "the", "very"]
        assert [*second.changes] == [0.0, 0.0, 2.0, 0.0, 3.0]  # `very` stays last all the same
    assert torch.equal(ROWS, before)
    part = part_of("in memory")
    part.inputs[0, 2:] = torch.tensor([4, 1, 4, 1, 0, 0])
    indices = [text.index for text in texts_of(part)]
    assert indices == [1], "words that change nothing, and a single word, have no part in it"


def test_only_the_first_words_of_a_long_text_are_examined():
    row = torch.full((1, 2 + 3 * READ), 4)
    row[0, 2 + READ - 1], row[0, 2 + READ] = 2, 3
    labels = torch.zeros(1, dtype=torch.int64)
    batches = []

    def predict(part):
        batches.append(len(part))
        return Judge()(part.inputs).detach()

    tokens = Tokens(WORDS, first=2)
    (text,) = explain_texts(predict, Split(row, labels, 2, "toy"), tokens, labels, [0])
    assert len(text.words) == len(text.changes) == READ
    assert text.unexamined_words == 2 * READ
    assert (text.words[-1], text.changes[-1]) == ("good", 2.0)
    assert batches == [3], "the text, and once without each of its two words"


def test_words_explain_a_winner_only_if_the_data_has_them():
    part = part_of("in memory")
    outputs = Outputs(Judge()(part.inputs).detach(), part.targets)
    measured = MeasuredNetwork(job(), Judge(), METRICS["accuracy"], outputs, part)
    explanations = explain(measured)
    assert [text.index for text in explanations.texts] == [1, 0], "the most confident error first"
    json.dumps(to_document(explanations), allow_nan=False)
    without_tokens = Split(part.inputs, part.targets, 2, "toy")
    assert explain(replace(measured, test=without_tokens)).texts == ()


def test_tokens_at_another_place_are_refused_before_any_training():
    wrong = Texts(FORMS["in a dict"][0], Tokens(WORDS, path=(0, "words")))
    with pytest.raises(DataError, match=r"item\[0\]\['words'\] is a row of integers"):
        Datasets(wrong, test=wrong, validation=1, outputs=2).train()
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UnfitData, match=r"a text from place 8 on; got inputs .* of torch.int64"):
        Split(ROWS, labels, 2, "toy", tokens=Tokens(WORDS, first=8))
    with pytest.raises(UnfitData, match=r"rows of integers"):
        Split(ROWS.float(), labels, 2, "toy", tokens=Tokens(WORDS))
    with pytest.raises(DataError, match=r"Tokens.names must be a list of words, .*; got 'good b"):
        Tokens("good bad")
