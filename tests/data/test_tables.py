"""CSV files: tables of independent rows, and series in time order."""

import math

import pytest
import torch
from toys import toy_folds

from studyloom.data.tables import Series, Table
from studyloom.errors import DataError

CANCER = Table("studyloom:breast_cancer.csv", "diagnosis", sealed=113, validation=91)


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes a CSV file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "data.csv"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def counted(file):
    """A file of the values 0 to 39, so that each value is its own position."""
    return file("year,value\n" + "".join(f"{1900 + year},{year}\n" for year in range(40)))


# Tables


def test_the_first_column_of_a_file_of_a_spreadsheet_program_has_its_name(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("kind,a\nx,1\ny,2\nx,3\ny,4\n", encoding="utf-8-sig")
    train = Table(str(path), "kind", sealed=2, validation=1).train()
    assert (train.columns, train.names) == (("a",), ("x", "y"))


def test_the_breast_cancer_data_are_569_tumours_of_30_measurements():
    train, test = CANCER.train(), CANCER.test()
    assert (len(train), len(test)) == (456, 113)
    assert train.shape == test.shape == (30,)
    assert train.names == ("benign", "malignant")
    assert (train.targets.sum() + test.targets.sum()).item() == 212, (
        "the malignant of the published data"
    )
    assert len(train.columns) == 30
    assert train.digest != test.digest


def test_the_sealed_rows_are_no_training_rows_and_have_the_classes_in_proportion():
    train, test = CANCER.train(), CANCER.test()
    assert not {row.numpy().tobytes() for row in train.inputs} & {
        row.numpy().tobytes() for row in test.inputs
    }
    assert test.targets.float().mean().item() == pytest.approx(212 / 569, abs=0.01)


def test_a_table_of_ones_own_is_read_with_the_target_wherever_it_stands(file):
    path = file("a, kind ,b\n1,x,2\n3, y,4\n5,x,6\n\n7,y,8\n")
    train, test = (
        Table(path, "kind", sealed=2, validation=1).train(),
        Table(path, "kind", sealed=2, validation=1).test(),
    )
    assert train.columns == ("a", "b")
    assert train.names == ("x", "y")
    rows = torch.cat([train.inputs, test.inputs]).tolist()
    assert sorted(rows) == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_classes_that_are_numbers_stand_in_their_order(file):
    path = file("a,kind\n" + "".join(f"{row},{row % 12}\n" for row in range(48)))
    assert Table(path, "kind", sealed=12, validation=4).train().names == tuple(map(str, range(12)))


def test_numbers_are_to_be_told_where_it_is_asked(file):
    path = file("a,value\n" + "".join(f"{row},{row / 2}\n" for row in range(20)))
    train = Table(path, "value", sealed=5, validation=4, numbers=True).train()
    assert not train.classifies
    assert (train.outputs, tuple(train.targets.shape)) == (1, (15, 1))
    assert torch.equal(train.targets, train.inputs / 2)


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        (
            "a,kind\n1,x\n2,y\n",
            "kin",
            r"data\.target=kin: .* has no such column; it has a, kind; did you mean kind\?",
        ),
        ("a,kind\n1,x\nx,y\n", "kind", r"line 3 must have a finite number for a; got 'x'"),
        ("a,kind\n1,x\nnan,y\n", "kind", r"line 3 must have a finite number for a; got 'nan'"),
        ("a,kind\n\n1,x\n\nx,y\n", "kind", r"line 5 must have a finite number for a; got 'x'"),
        ("a,kind\n1,x\n2\n", "kind", "line 3 has 1 fields; the header has 2"),
        ("a,a\n1,x\n2,y\n", "a", "a line of column names, all different"),
        ("", "a", "a line of column names, all different, and have two lines of values"),
        ("a,kind\n1,x\n2,y\n", "kind", r"data\.sealed must be from 1 to 1, for 2 rows; got 5"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_line_and_column(file, text, target, words):
    with pytest.raises(DataError, match=words):
        Table(file(text), target, sealed=5, validation=1).train()


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(
        DataError, match=r"data\.path=nowhere\.csv: cannot be read as a CSV file: No such file"
    ):
        Table("nowhere.csv", "kind", sealed=5, validation=1).train()


# Series


def test_the_sunspots_are_those_of_309_years():
    source = Series("studyloom:sunspots.csv", "sunspots", window=12, sealed=50, validation=50)
    train, test = source.train(), source.test()
    assert (len(train), len(test)) == (309 - 12 - 50, 50)
    assert train.ordered
    assert train.inputs[0, 0].item() == 5.0, "of the year 1700"
    assert test.targets[-1].item() == pytest.approx(2.9), "of the year 2008"


def test_a_window_is_followed_by_its_target(counted):
    split = Series(counted, "value", window=3, sealed=5, validation=4).train()
    assert split.inputs[:2, :, 0].tolist() == [[0, 1, 2], [1, 2, 3]]
    assert split.targets[:2].tolist() == [[3], [4]]
    assert split.references["persistence"][:2].tolist() == [[2], [3]]


@pytest.mark.parametrize("count", [1, 3])
def test_no_window_that_teaches_holds_a_value_that_is_to_be_told_later(counted, count):
    source = Series(counted, "value", window=3, sealed=5, validation=4)
    train, test = source.train(), source.test()
    seen = {*train.inputs.flatten().tolist(), *train.targets.flatten().tolist()}
    assert not seen & {*test.targets.flatten().tolist()}, "of the sealed part"
    for teaching, valid in toy_folds(train, count):
        seen = {
            *train.inputs[teaching].flatten().tolist(),
            *train.targets[teaching].flatten().tolist(),
        }
        assert not seen & {*train.targets[valid].flatten().tolist()}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, r"data\.window must be from 1 to 38, for 40 values in .*; got 0"),
        ({"window": 39}, r"data\.window must be .*; got 39"),
        ({"sealed": 37}, r"data\.sealed must be from 1 to 36, .*; got 37"),
        ({"column": "valu"}, r"data\.column=valu: .* did you mean value\?"),
    ],
)
def test_a_series_that_cannot_be_cut_is_refused(counted, settings, words):
    with pytest.raises(DataError, match=words):
        Series(
            counted, **{"column": "value", "window": 3, "sealed": 5, "validation": 4} | settings
        ).train()


def test_persistence_is_what_it_says(counted):
    test = Series(counted, "value", window=3, sealed=5, validation=4).test()
    assert math.isclose((test.references["persistence"] - test.targets).abs().mean().item(), 1.0)
