"""Datasets: what is found out of them, held out of them, and said before the first trial."""

import os

import numpy as np
import pytest
import torch
from drawn import Drawn, drawn
from torch.utils.data import IterableDataset, Subset, TensorDataset

from studyloom.data import Datasets
from studyloom.data.datasets import find_random_validation
from studyloom.data.split import make_folds
from studyloom.errors import DataError


class Stream(IterableDataset):
    """Its length is known, and its `__getitem__` is that of the base class, which only raises."""

    def __len__(self):
        return 1

    def __iter__(self):
        yield torch.zeros(1), 0


class Nothing(Drawn):
    def __init__(self):
        super().__init__(0)


class Folder(Drawn):
    """Lists its files as a folder of torchvision does; they are no images."""

    classes = ("a", "b", "c")

    def __init__(self, folder):
        super().__init__(30)
        self.samples = [(str(path), 0) for path in sorted(folder.rglob("*.png"))]

    def __len__(self):
        return len(self.samples)


GIVEN = {"train": Drawn(), "validation": 15}


def test_shape_and_outputs_come_from_the_first_item_and_targets():
    examples = drawn()
    assert (examples.shape, examples.outputs, examples.classifies) == ((1, 4, 4), 3, True)
    assert (len(examples), examples.kind) == (60, "float32")
    assert examples.targets[:4].tolist() == [0, 1, 2, 0]
    numbers = TensorDataset(torch.zeros(9, 5), torch.zeros(9, 2))
    examples = Datasets(train=numbers, validation=3).train()
    assert (examples.shape, examples.outputs, examples.classifies) == ((5,), 2, False)
    classes = TensorDataset(torch.zeros(9, 5), torch.arange(9) % 4)
    assert Datasets(train=Subset(classes, [0, 2]), validation=1).train().outputs == 3


def test_held_out_sets_are_stratified_if_there_are_classes():
    examples = drawn()
    ((train, valid),) = examples.folds(1, 15, 3)
    assert torch.equal(valid, make_folds(examples.targets, 1, 15, 3)[0][1])
    assert examples.targets[valid].bincount().tolist() == [5, 5, 5]
    assert len(train) == 45
    plain = Datasets(train=[(torch.zeros(2), 0.5)] * 20, validation=5).train()
    parts = plain.folds(4, 5, 3)
    assert sorted(torch.cat([valid for _, valid in parts]).tolist()) == [*range(20)]


def test_no_group_is_in_training_and_validation_set():
    names = np.array([f"patient {index // 7}" for index in range(60)])
    examples = drawn(groups=[*names])
    for count in (1, 3):
        drawn_folds = [examples.folds(count, 15, seed) for seed in range(4)]
        for folds in drawn_folds:
            for train, valid in folds:
                assert not {*names[train]} & {*names[valid]}
                assert len(train) + len(valid) == 60
                assert 7 <= len(valid) <= (15 if count == 1 else 60 // count + 7)
            if count > 1:
                validated = torch.cat([valid for _, valid in folds])
                assert sorted(validated.tolist()) == [*range(60)]
        assert len({str(folds) for folds in drawn_folds}) > 1, "other seeds draw other groups"


def test_a_separate_validation_set_is_never_trained_on():
    examples = drawn(valid=Drawn(9, noise=0.0), validation=None)
    ((train, valid),) = examples.folds(1, None, 0)
    assert (train.tolist(), valid.tolist()) == ([*range(60)], [*range(60, 69)])
    everything, seen = examples.whole_fold()
    assert (len(everything), seen.tolist()) == (60, [*range(60, 69)])
    batch = examples.evaluation.load_batch([59, 60, 68], 0)
    assert torch.equal(batch[0][1], Drawn(9, noise=0.0)[0][0])
    assert len(examples) == 60
    with pytest.raises(DataError, match=r"objective\.folds must be 1 where.*got 5"):
        examples.folds(5, None, 0)


def test_a_function_may_load_all_sets_and_loads_the_test_set_last():
    opened = []

    def load(part):
        opened.append(part)
        return Drawn({"train": 60, "valid": 9, "test": 12}[part], noise=0.0)

    source = Datasets(load=load)
    examples = source.train()
    assert opened == ["train", "valid"]
    assert len(examples.evaluation) == 69
    assert len(source.test()) == 12
    assert (source.test().outputs, source.test().shape) == (3, (1, 4, 4))
    opened.clear()
    Datasets(load=load, validation=15).train()
    assert opened == ["train"], "where examples are held out, there is no other part"


# What identifies the data


def test_the_digest_of_a_folder_has_names_sizes_and_times_of_files(tmp_path):
    for number in range(5):
        path = tmp_path / "a" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
        os.utime(path, (1, 1))

    def digest(folder):
        return Datasets(train=Folder(folder), validation=2).train().digest

    first = digest(tmp_path / "a")
    assert digest(tmp_path / "a") == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path / "b") == first, "wherever the folder lies"
    path = tmp_path / "b" / "0" / "2.png"
    os.utime(path, (2, 2))
    assert digest(tmp_path / "b") != first
    path.write_bytes(b"NO IMAGE")
    os.utime(path, (1, 1))
    assert digest(tmp_path / "b") == first, "a large set is not read"
    path.rename(path.with_name("9.png"))
    assert digest(tmp_path / "b") != first


def test_the_digest_of_other_datasets_reads_a_sample_of_items():
    class Counted(Drawn):
        read = 0

        def __getitem__(self, index):
            type(self).read += 1
            return super().__getitem__(index)

    large = Counted(100_000)
    first = Datasets(train=large, validation=5).train().digest
    assert 0 < Counted.read < 100
    assert Datasets(train=Counted(100_000), validation=5).train().digest == first
    assert Datasets(train=Counted(99_999), validation=5).train().digest != first
    assert Datasets(train=Counted(100_000, 0.5), validation=5).train().digest != first
    weighted = Datasets(train=large, validation=5, weights=[1.0] * 100_000)
    assert weighted.train().digest != first


def test_a_custom_digest_is_used_and_loading_is_in_no_digest():
    one = drawn(digest="v1").digest
    assert drawn(digest="v1", train=Drawn(noise=0.3)).digest == one
    assert drawn(digest=lambda dataset: f"{len(dataset)} of mine").digest != one
    assert drawn(num_workers=2, persistent_workers=True).digest == drawn().digest


# Bad input


WRONG = [
    ({"train": Stream()}, r"data\.train must be a map-style.*--kind loop; got Stream"),
    ({"train": Nothing()}, r"data\.train must have at least one item; Nothing is empty"),
    ({"train": None}, r"data\.train must be a Dataset by its _target_, or data\.load"),
    ({"evaluate": Drawn(59)}, r"data\.evaluate must be as long as the 60 examples.*got 59"),
    ({"weights": [1.0] * 59}, r"data\.weights must be as long as the 60 examples.*got .59"),
    ({"weights": [-1.0] * 60}, r"data\.weights must be finite numbers of at least 0"),
    ({"groups": ["a"] * 60, "ordered": True}, r"data\.groups and data\.ordered: choose one"),
    ({"targets": [0.5] * 60}, r"data\.targets must be classes, integers from 0"),
    ({"outputs": 2}, r"classes must be from 0 to 1.*got class 2"),
    ({"num_workers": -1}, r"data\.num_workers must be an integer from 0"),
]


def test_an_unfit_value_is_named_with_what_it_must_be():
    for settings, words in WRONG:
        with pytest.raises(DataError, match=words):
            Datasets(**GIVEN | settings).train()


def test_a_missing_set_and_a_single_group_are_named_with_a_fix():
    with pytest.raises(DataError, match=r"data\.validation must be the number.*data\.valid"):
        Datasets(train=Drawn()).train().folds(1, None, 0)
    with pytest.raises(DataError, match=r"data\.test must be.*winner\.enabled=false"):
        Datasets(**GIVEN).test()
    with pytest.raises(ValueError, match=r"data\.groups must be at least 2.*got 1"):
        drawn(groups=["a"] * 60).folds(1, 15, 0)


def test_items_that_raise_or_differ_are_named_before_trial_0():
    items = [(torch.zeros(2), k % 2) for k in range(20)]
    items[19] = (torch.zeros(2), 1, "more")
    with pytest.raises(DataError, match=r"item 0 is \(tensor.*and item 19 is .*data\.collate"):
        Datasets(train=items, validation=5, outputs=2).train().check()

    class Raising(Drawn):
        def __getitem__(self, index):
            if index == 59:
                raise FileNotFoundError("59.png")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"data\.train: item 59 raised FileNotFoundError: 59\.png"):
        Datasets(train=Raising(), validation=5).train()


class Binary(Drawn):
    """Whether an image is of the first class, as by a target_transform."""

    def __getitem__(self, index):
        pixels, label = super().__getitem__(index)
        return pixels, int(label == 0)


def test_classes_that_differ_from_the_items_are_named():
    with pytest.raises(DataError, match=r"data\.train: item 0 is of class 1, but 0 in.*data\.tar"):
        Datasets(train=Binary(), validation=15).train().check()
    given = [int(label == 0) for label in Binary().targets]
    examples = Datasets(train=Binary(), validation=15, targets=given).train()
    examples.check()
    assert examples.outputs == 2
    drawn(targets=given).check()
    drawn(valid=Binary(9), validation=None).check()  # its items have no known classes


class Named(Drawn):
    """Images in classes with names."""

    def __init__(self, classes, noise=1.0):
        super().__init__(noise=noise)
        self.classes = classes


def test_sets_that_number_their_classes_differently_are_refused():
    train = Named(["a", "b", "c"], noise=0.0)
    for part in ("valid", "evaluate", "test"):
        for classes in (["a", "c"], ["b", "a", "c"]):
            data = Datasets(**{"train": train, "validation": 15, part: Named(classes)})
            words = rf"data\.{part} must have the classes of data.train .* a, b, c; got"
            with pytest.raises(DataError, match=words):
                data.test() if part == "test" else data.train()
    same = Named(("a", "b", "c"))
    assert Datasets(train=train, valid=same, test=same).test().names == ("a", "b", "c")


def test_validation_on_random_items_is_named_by_its_key():
    fixed = Drawn(noise=0.0)
    for given, key in (
        ({"train": Drawn()}, "data.train"),
        ({"train": Drawn(), "evaluate": fixed}, ""),
        ({"train": Drawn(), "valid": fixed}, ""),
        ({"train": fixed, "valid": Drawn()}, "data.valid"),
    ):
        assert find_random_validation(Datasets(**given, validation=15).train()) == key
