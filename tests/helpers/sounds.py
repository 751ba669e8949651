"""WAV files for the tests: correct ones, and those that cannot be read."""

import io
import struct
import wave

import numpy as np


def sweep(seconds: float, low: float, high: float, rate: int) -> np.ndarray:
    """A tone of half the full scale that rises from one frequency in hertz to another."""
    times = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (low * times + (high - low) / (2 * seconds) * times**2))


def wav(samples: np.ndarray, rate: int, width: int = 2, channels: int = 1) -> bytes:
    """A WAV file of samples from -1 to 1, the same in each channel."""
    levels = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        levels += 128
    whole = np.repeat(levels, channels).astype("<i8")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", ""))
        writer.writeframes(whole.view(np.uint8).reshape(-1, 8)[:, :width].tobytes())
    return file.getvalue()


def changed(content: bytes, place: int, form: str, value: int) -> bytes:
    """A file with another number in its header."""
    packed = struct.pack(form, value)
    return content[:place] + packed + content[place + len(packed) :]


def hostile_wavs() -> dict[str, tuple[bytes, str]]:
    """Files that are refused, with some words of the reason."""
    word = sweep(0.5, 300, 1800, 8000)
    whole = wav(word, 8000)
    quiet = np.random.default_rng(0).normal(size=8000) * 1e-5
    return {
        "empty": (b"", "must be a WAV file"),
        "text": (b"one two three", "must be a WAV file"),
        "image": (b"\x89PNG\r\n\x1a\n" + bytes(100), "must be a WAV file"),
        "webp": (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(100), "must be a WAV file"),
        "header": (whole[:30], "must be a WAV file"),
        "floats": (changed(whole, 20, "<H", 3), "must be a WAV file of PCM"),
        "compressed": (changed(whole, 20, "<H", 85), "must be a WAV file of PCM"),
        "channels": (changed(whole, 22, "<H", 0), "must be a WAV file"),
        "width": (changed(whole, 34, "<H", 0), "must be a WAV file"),
        "wide": (changed(whole, 34, "<H", 64), "must be a WAV file of PCM samples: 64 bits"),
        "no rate": (changed(whole, 24, "<I", 0), "must have 4000 to 192000 samples a second"),
        "rate": (changed(whole, 24, "<I", 2**32 - 1), "must have 4000 to 192000"),
        "lies": (changed(whole, 40, "<I", 100_000), r"its header says 100000 bytes .* 8000 follow"),
        "vast": (changed(whole, 40, "<I", 2**32 - 2), "at most 3_000_000 samples"),
        "cut short": (whole[:-1000], "its header says 8000 bytes of sound, and 7000 follow"),
        "no sound": (wav(word[:0], 8000), "is silent"),
        "silence": (wav(np.zeros(8000), 8000), "is silent"),
        "hum": (wav(np.full(8000, 0.5), 8000), "is silent"),
        "whisper": (wav(quiet, 8000, 4), "is silent"),
        "click": (wav(word[:40], 8000), r"of 0\.05 to 3 s; 0\.0\d s are heard"),
        "speech": (wav(sweep(4, 300, 1800, 8000), 8000), r"of 0\.05 to 3 s; 4\.0\d s are heard"),
    }
