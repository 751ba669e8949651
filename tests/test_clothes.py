"""The study of reviews: whose reviews are in which part, and what is made of odd ones."""

import hashlib

import numpy as np
import pytest
import torch
from toys import ask

from studies import clothes
from studies.clothes import COLUMNS, ReviewFile, ReviewNet, Reviews
from studyloom.config.build import build
from studyloom.errors import PredictError
from studyloom.extras.predict.predicting import predict
from studyloom.files import GALLERY
from studyloom.winner.inputs import InputFormat
from studyloom.winner.predictor import Network
from studyloom.winner.result import DataFacts

EMPTY = "no text: answered by the table, or a guess if the winner reads none"


@pytest.fixture(scope="module")
def parts():
    """Both parts of every twelfth review; words and sealed clothes are theirs."""
    rows = clothes.reviews()[::12]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clothes, "reviews", lambda: rows)
        patch.setattr(clothes, "PAIRS", 1000)
        for cached in (clothes.clothes_of_test, clothes.known):
            cached.cache_clear()
        yield Reviews("train"), Reviews("test")
    for cached in (clothes.clothes_of_test, clothes.known):
        cached.cache_clear()


def test_the_embedded_reviews_and_their_sets_never_change():
    content = (GALLERY / "reviews.csv.bz2").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("c6ffb3f7658212dd")
    rows = clothes.reviews()
    assert len({row["review"] for row in rows}) == len(rows)
    assert sum(row["clothing"] in clothes.clothes_of_test() for row in rows) == 4432


def test_no_piece_of_clothing_is_in_two_sets(parts):
    train, test = parts
    assert not {*train.clothing} & {*test.clothing}
    assert len(train) + len(test) == len(clothes.reviews())


def test_no_fold_divides_a_piece_of_clothing(parts):
    source = build(ask("data.validation=300", name="reviews").config["data"], "data")
    split = source.train()
    what = np.array(parts[0].clothing)
    for count, seed in ((1, 5), (4, 0)):
        for learnt, validated in split.folds(count, source.validation, seed):
            assert not {*what[learnt]} & {*what[validated]}
            assert len(validated) > 250


def test_words_and_columns_come_only_from_the_training_set(parts):
    vocabulary, options = clothes.known()
    train = [row for row in clothes.reviews() if row["clothing"] not in clothes.clothes_of_test()]
    seen = {word for row in train for word in clothes.words_of(row["review"])}
    assert {*vocabulary.numbers} <= seen
    assert options["class"] == sorted({row["class"] for row in train} - {""})


def test_a_file_that_holds_no_reviews_is_refused():
    for content, said in (
        (b"\xff\xfe\0", "must be a CSV file in UTF-8"),
        (b"review,age\nlove it,-3\n", "review 1: age must be an integer from 0 to 120"),
        (b"review,rating\nI love it, really,5\n", "review 1: has more fields than the first line"),
        (b'review,rating\n"I love it,5\n', "must be a CSV file in UTF-8: unexpected end of data"),
    ):
        with pytest.raises(ValueError, match=said):
            ReviewFile()(content)


def test_a_fusion_reads_only_its_parts_of_a_review(parts):
    torch.manual_seed(0)
    rows = parts[0].inputs[:8]
    table, text = rows.split([len(COLUMNS), rows.shape[1] - len(COLUMNS)], 1)
    other_table = torch.cat([table.roll(1, 0), text], 1)
    other_text = torch.cat([table, text.roll(1, 0)], 1)
    for fusion in ("text", "table", "join", "add", "gate"):
        network = ReviewNet(2, fusion, vocabulary=500).eval()
        reads_text = not torch.equal(network(rows), network(other_text))
        reads_table = not torch.equal(network(rows), network(other_table))
        assert (reads_text, reads_table) == (fusion != "table", fusion != "text")


def test_predict_accepts_odd_reviews_with_notes(tmp_path, parts):
    torch.manual_seed(0)
    names = Reviews.classes
    facts = DataFacts("", "", (len(parts[0].inputs[0]),), 2, 0.0, 1.0, class_names=names)
    network = Network(ReviewNet(2, "add"), InputFormat(facts, ReviewFile()))
    (tmp_path / "asked.csv").write_text('review,rating\n"I love it",5\n,2\n')
    (tmp_path / "none.csv").write_text("nothing\n1\n")
    answers = predict(network, [tmp_path / "asked.csv", tmp_path / "none.csv"])
    first, second = next(answers), next(answers)
    assert {first.class_name, second.class_name} <= {*names}
    assert "no age, taken as 43" in first.note
    assert EMPTY in second.note
    with pytest.raises(PredictError, match=r"none.csv: it must be a CSV file whose first line"):
        next(answers)
