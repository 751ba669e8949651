"""Studies of Datasets: what is tried before trial 0, and what identifies the definition."""

import toys
from toys import LOOP, Never, ask, validate_search

from studyloom.definition.prepare import load_data

DATA = {
    "_target_": "studyloom.data.Datasets",
    "train": {"_target_": "drawn.Drawn"},
    "test": {"_target_": "drawn.Drawn", "count": 12},
    "validation": 15,
}
NORMED = ("~model", "+model={_target_: drawn.Normed}")


def make_definition(*overrides, **data):
    base = ("space=none", "train.batch_size=9", "train.epochs=1", "pruner=none")
    definition = ask(*base, *overrides)
    section = {key: value for key, value in (DATA | data).items() if value is not None}
    config = definition.config.with_values({"data": section})
    definition.composer.cache_own_config(config)
    return type(definition)(config, definition.composer, definition.space)


def find_errors(*overrides, **data):
    definition = make_definition(*overrides, **data)
    try:
        validate_search(definition, load_data(definition.config))
    except ValueError as error:
        return str(error)
    return ""


COLLATE = {"_target_": "drawn.three", "_partial_": True}


def test_a_definition_with_datasets_is_accepted():
    assert find_errors("objective.folds=3", "loss.weights=balanced", validation=None) == ""
    assert find_errors(*NORMED, collate=COLLATE) == ""


def test_datasets_that_cannot_be_trained_on_are_refused_before_trial_0():
    bare = (*NORMED[:1], "+model={_target_: drawn.Normed, classes_: 2}")
    single = "the last batch of an epoch has a single example"
    odd = (*NORMED, "train.batch_size=7")
    for overrides, data, words in (
        ((*NORMED, "train.batch_size=11"), {}, single),  # of 45
        (odd, {"collate": COLLATE}, "data.collate must return the batch"),
        ((), {"train": {"_target_": "drawn.Odd"}}, "default_collate raised RuntimeError"),
        (bare, {}, "network and loss, on 2 examples: IndexError: Target 2 is out of bounds"),
        (("objective.metric=rmse",), {}, "rmse: is for numbers, and the targets of the data are c"),
        (("model.standardize=true",), {}, "normalize them in the Dataset"),
        ((), {"outputs": None, "targets": [0] * 61}, "data.targets must be as long as the 60"),
        ((), {"test": None}, "data.test must be the Dataset of the test set"),
    ):
        assert words in find_errors(*overrides, **data)


def test_a_last_batch_of_one_in_the_reevaluation_is_refused():
    groups = [0] * 3 + [1] * 4 + [2] * 6 + [3] * 8 + [4] * 9 + [5] * 13 + [6] * 17
    definition = make_definition(*NORMED, groups=groups)
    data = load_data(definition.config)
    searched = len(data.folds[0][0])
    later = [
        len(definition.make_new_fold(data, seed)[0])
        for seed in range(definition.config.winner.seeds)
    ]
    only_later = [
        size
        for size in range(5, 30)
        if any(count % size == 1 for count in later) and 1 not in (searched % size, 60 % size)
    ]
    single = "the last batch of an epoch has a single example"
    for size in only_later:
        batches = (*NORMED, f"train.batch_size={size}")
        assert single in find_errors(*batches, groups=groups)
        assert find_errors(*batches, "winner.enabled=false", groups=groups) == ""
        assert find_errors(*batches, "train.drop_last=true", groups=groups) == ""
    assert only_later


def test_where_data_lie_and_how_they_load_do_not_identify_a_study():
    plain = make_definition().identity("d")
    moved = make_definition(
        train={"_target_": "drawn.Drawn", "root": "a"},
        evaluate=None,
        num_workers=2,
        pin_memory=True,
        persistent_workers=True,
    )
    assert moved.identity("d") == plain
    other = make_definition(train={"_target_": "drawn.Drawn", "noise": 0.5})
    assert other.identity("d") != plain


def test_a_loop_gets_its_fold_with_the_transforms_of_each_set(monkeypatch):
    seen = []

    def numbers(part):
        """Which examples a part has, by their pixels; and the pixels."""
        items = [pixels.flatten() for pixels, _ in part]
        return [round(float(p[-1] - p[0]) * 60) for p in items], [p.tolist() for p in items]

    def look(config, run):
        trained, validated = numbers(run.train), numbers(run.valid)
        assert numbers(run.train)[1] != trained[1], "drawn again"
        assert numbers(run.valid) == validated, "without noise"
        seen.append((run.fold, sorted(trained[0]), validated[0]))
        return 0.0

    monkeypatch.setattr(toys, "train", look)
    definition = make_definition(
        *(way for way in LOOP if not way.startswith("objective.test")),
        "objective.folds=3",
        train={"_target_": "drawn.Drawn", "noise": 1e-4},
        evaluate={"_target_": "drawn.Drawn", "noise": 0.0},
        validation=None,
    )
    made = definition.make_objective(definition.baseline, 0, load_data(definition.config))
    made.run(lambda step: None, Never())
    assert [fold for fold, *_ in seen] == [0, 1, 2]
    assert sorted(number for *_, validated in seen for number in validated) == [*range(60)]
    for _, trained, validated in seen:
        assert trained == sorted({*range(60)} - {*validated})
