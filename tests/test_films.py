"""The study of ratings: nothing later is an input, and nothing of a part is in another.

The laws are shown on a made-up table in the format of MovieLens 100k, which may not be passed on;
on the data themselves too, where they are installed.
"""

import re

import numpy as np
import pytest
import torch
from toys import ask, value_after

from studies import films, movielens
from studies.films import COLUMNS, PLACE, RatingFile, Ratings, Recommender, inputs_of, tables
from studyloom.config.build import build
from studyloom.errors import PredictError
from studyloom.extras.predict.predicting import predict
from studyloom.winner.inputs import InputFormat
from studyloom.winner.predictor import Network
from studyloom.winner.result import DataFacts

COUNT, PEOPLE, REELS = 600, 30, 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A table of 30 users who like even films, and odd ones less, the later the more users."""
    monkeypatch.setattr(movielens, "RATINGS", COUNT)
    monkeypatch.setattr(movielens, "USERS", PEOPLE)
    monkeypatch.setattr(movielens, "FILMS", REELS)
    drawn = np.random.default_rng(0)
    pairs = drawn.permutation([(u, f) for u in range(1, PEOPLE + 1) for f in range(1, REELS + 1)])
    chosen = pairs[:COUNT]
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for number, (user, film) in enumerate(chosen):
        rating = 5 - 2 * (film % 2) - (user % 2)
        ratings.append(f"{user}\t{film}\t{rating}\t{1000 + 200 * user + number // 3}")
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += [f"{user}\t{20 + user}\tF\tartist\t1" for user in range(1, PEOPLE + 1)]
    reels = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    reels += [f"{film}\tFilm\t1990\tComedy War" for film in range(1, REELS + 1)]
    for name, rows in (("inter", ratings), ("user", users), ("item", reels)):
        (tmp_path / f"ml-100k.{name}").write_text("\n".join(rows) + "\n")
    for cached in (tables, films.made):
        cached.cache_clear()
    yield tmp_path
    for cached in (tables, films.made):
        cached.cache_clear()


def test_no_rating_of_the_same_second_or_later_is_in_an_input(folder):
    data = tables(folder)
    inputs, _ = inputs_of(data, 100)
    seconds = data.ratings[:, 3]
    for row in (50, 300, 550):
        other = data.ratings.copy()
        late = seconds >= seconds[row]
        other[late, 2] = 6 - other[late, 2]
        changed, _ = inputs_of(data._replace(ratings=other), 100)
        assert torch.equal(changed[seconds <= seconds[row]], inputs[seconds <= seconds[row]])
        assert not torch.equal(changed, inputs)


def test_the_test_ratings_are_the_last_and_are_in_no_input(folder):
    data = tables(folder)
    inputs, _ = inputs_of(data, 100, known=False)
    other = data.ratings.copy()
    other[-100:, 2] = 6 - other[-100:, 2]
    assert torch.equal(inputs_of(data._replace(ratings=other), 100, known=False)[0], inputs)
    assert not torch.equal(inputs_of(data._replace(ratings=other), 100)[0], inputs)


def test_folds_move_forward_in_time(folder):
    source = Ratings(100, 90, root=str(folder))
    split = source.train()
    assert (len(split), len(source.test()), split.ordered) == (500, 100, True)
    for count in (1, 3):
        for learnt, validated in split.folds(count, source.validation, 0):
            assert int(learnt.max()) < int(validated.min())


def test_users_and_films_outside_of_training_have_no_number(folder):
    source = Ratings(100, 90, root=str(folder))
    train, test = source.train(), source.test()
    for name in ("user", "film"):
        seen = {*train.inputs[:, PLACE[name]].tolist()}
        assert {*test.inputs[:, PLACE[name]].tolist()} <= seen | {0}
        assert 0 not in seen
    assert 0 in test.inputs[:, PLACE["user"]], "the last users come late"


def test_a_few_epochs_of_the_study_beat_the_mean(folder):
    definition = ask(f"data.root={folder}", "data.test_size=100", "data.validation=90",
                   "model.kind=history", "train.epochs=6", "train.batch_size=32",
                   name="ratings")  # fmt: skip
    source = build(definition.config["data"], "data")
    split = source.train()
    value = value_after(definition, split, split.folds(1, source.validation, 0))
    assert value < float(split.targets.std()) - 0.1


def test_predict_names_the_replacement_for_unknown_users(folder, tmp_path):
    read = RatingFile(100, str(folder))
    facts = DataFacts("", "", (len(COLUMNS),), 1, 0.0, 1.0, classifies=False)
    network = Network(Recommender("history").eval(), InputFormat(facts, read))
    (tmp_path / "asked.csv").write_text("user,film\n1,2\n999,2\n1,888\n30,1\n")
    (tmp_path / "bad.csv").write_text("user,film\n1,two\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    answers = predict(network, [tmp_path / f"{name}.csv" for name in ("asked", "bad", "other")])
    notes = [next(answers).note for _ in range(4)]
    assert notes[0] == ""
    assert notes[1] == "user 999 unknown, taken as one of age 33 without ratings"
    assert notes[2] == "film 888 unknown, taken as one without genres and ratings"
    assert notes[3] == "user 30 not in training, taken by age, occupation and later ratings"
    with pytest.raises(PredictError) as error:
        next(answers)
    assert "bad.csv: rating 1 must name a user and a film by their numbers" in str(error.value)
    assert "other.csv: it must be a CSV file whose first line names user" in str(error.value)


def test_a_damaged_file_is_named_with_a_command_that_restores_it(folder):
    for name, damage, said in (
        ("inter", lambda text: text[: len(text) // 2], r"damaged|must have 600 lines"),
        ("inter", lambda text: re.sub(r"\d\t(\d{4})", r"9\t\1", text, count=1), "be from 1 to 5"),
        ("item", lambda text: "", "must have 40 lines below its first; got 0"),
        ("user", None, "No such file .*--force-reinstall"),
    ):
        path = folder / f"ml-100k.{name}"
        whole = path.read_text()
        path.write_text(damage(whole)) if damage else path.unlink()
        with pytest.raises(ValueError, match=rf"ml-100k.{name}: .*({said})") as caught:
            Ratings(100, 90, root=str(folder)).train()
        assert str(caught.value).endswith(movielens.ANEW)
        path.write_text(whole)


@pytest.mark.nightly
def test_validation_and_test_sets_begin_at_a_new_second():
    source = build(ask(name="ratings").config["data"], "data")
    try:
        data = tables(films.folder_of(source.root))
    except ValueError as error:
        pytest.skip(str(error))
    seconds = data.ratings[:, 3]
    for first in (
        len(seconds) - source.test_size,
        len(seconds) - source.test_size - source.validation,
    ):
        assert seconds[first - 1] < seconds[first]
