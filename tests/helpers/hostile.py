"""Files that cannot be read: truncated, lying about their size, far too large, or missing."""

import io
import os
import pickle
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (28, 28)
PIXELS = np.arange(28 * 28, dtype=np.uint8).reshape(SIZE)


def image(kind: str, size: tuple[int, int] = SIZE, mode: str = "L", **settings: object) -> bytes:
    """Returns an image of noise in a format."""
    noise = np.random.default_rng(0).integers(0, 255, size[::-1], np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, body: bytes = b"", *, more: bytes = b"") -> bytes:
    """Returns a PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(body or bytes(29 * 28))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_header(text: str, body: bytes = b"", version: int = 1) -> bytes:
    """Returns a .npy file with a header of its own."""
    size = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + b"\n" + body


def shaped(shape: str, kind: str = "<f4", order: str = "False", body: bytes = b"") -> bytes:
    return npy_header(f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}", body)


class Touch:
    """What executes a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def with_dimensions(content: bytes, where: int, form: str, *values: int) -> bytes:
    """Writes other dimensions into the header of an image."""
    changed = bytearray(content)
    struct.pack_into(form, changed, where, *values)
    return bytes(changed)


def images() -> dict[str, bytes]:
    """Images, by the name of their file."""
    jpeg = image("JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    made = {
        f"half.{kind.lower()}": (whole := image(kind))[: len(whole) * 2 // 3]
        for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")
    }
    made["half.gif"] = image("GIF")[:200]
    made |= {
        "wide.png": png(2**31 - 1, 2**31 - 1),
        "flat.png": png(0, 28),
        "bomb.png": png(20_000, 20_000, bytes(20_001 * 200)),
        "text.png": png(28, 28, b"x", more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**23)))),
        "wide.jpeg": with_dimensions(jpeg, frame, ">HH", 65_535, 65_535),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n(CANARY) (w) file\n",
        "sound.wav": b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\0\0\0" + bytes(99),
        "words.png": b"hello",
        "nothing.png": b"",
    }
    return made


def arrays(canary: Path) -> dict[str, bytes]:
    image = PIXELS.astype(np.float32)[None]
    return {
        "objects.npy": npy(np.array([Touch(canary)], dtype=object)),
        "pickle.npy": pickle.dumps(Touch(canary)),
        "negative.npy": shaped("(-1, 28, 28)", body=bytes(784 * 4)),
        "huge.npy": shaped("(1000000000000, 1, 28, 28)", body=bytes(99)),
        "half.npy": npy(image)[:-9],
        "nan.npy": npy(np.where(image == 3, np.nan, image)),
        "overflow.npy": npy(np.full((1, 28, 28), 1e300)),
        "enormous.npy": npy(np.full((1, 28, 28), 3e38, np.float32)),
        "code.npy": npy_header(f"__import__('os').system('touch {canary}')"),
        "nested.npy": npy_header("(" * 4000 + ")" * 4000),
        "subarray.npy": npy_header(
            "{'descr': ('<f4', (2147483647,)), 'fortran_order': False, 'shape': (1,)}"
        ),
    }


def archives(canary: Path) -> dict[str, bytes]:
    """Archives of arrays, by the name of their file."""
    image = np.zeros((1, 28, 28), np.float32)
    whole = archive(image=npy(image))
    return {
        "empty.npz": archive(),
        "half.npz": whole[: len(whole) // 2],
        "several.npz": archive(image=npy(image), other=npy(image)),
        "objects.npz": archive(image=npy(np.array([Touch(canary)], dtype=object))),
        "pickle.npz": archive(image=pickle.dumps(Touch(canary))),
        "huge.npz": archive(image=shaped("(1000000000000, 1, 28, 28)", body=bytes(99))),
        "bomb.npz": archive(image=shaped("(1000000, 1, 28, 28)", body=bytes(2**29))),
        "liar.npz": _liar(archive(image=shaped("(1, 1, 28, 28)", body=bytes(2**29)))),
        "bzip2.npz": archive(zipfile.ZIP_BZIP2, image=npy(image)),
        "many.npz": archive(**{f"a{number}": b"" for number in range(2000)}),
        "nested.npz": archive(image=whole),
    }


def archive(packed: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    """Returns a .npz file of members by name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as written:
        for name, content in members.items():
            written.writestr(f"{name}.npy", content)
    return file.getvalue()


def _liar(content: bytes) -> bytes:
    """Lets the only member of an archive claim that it is small."""
    changed = bytearray(content)
    struct.pack_into("<I", changed, content.index(b"PK\x01\x02") + 24, 5000)
    return bytes(changed)


def nodes(folder: Path) -> list[Path]:
    """What is no file that can be read."""
    folder.mkdir()
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")
    os.mkfifo(folder / "fifo.npy")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "device.npy").symlink_to("/dev/zero")
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
    finally:
        os.chdir(here)
    made = sorted(folder.iterdir())
    return [*made, folder / "gone.png", folder / ("long" * 99), folder / "fifo.png" / "below.png"]


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Writes files to a new folder and returns their paths."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]
