"""Sounds as inputs: WAV files, read within bounds, and spectrograms of their audible part.

A spectrogram says how loud each band of frequencies is in each frame, a short piece of the sound.
`scripts/embed.py` converts the embedded recordings by the same `Sound` with which `studyloom
predict` converts a file.
"""

import functools
import io
import math
import wave
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studyloom.errors import DataError

RATES = (4_000, 192_000)  # samples per second, from telephones to studios
MOST_SAMPLES = 3_000_000  # the limit for all channels of a file; a minute of a CD has 2.6 million
SILENT = 1e-3  # a share of full scale; the quietest of 3,000 recordings has a peak of 0.0064
SHORTEST = 0.05  # the least seconds of sound
NOTABLE = 0.1  # a note says if more seconds are cut off
LOWEST_FREQUENCY = 60.0  # in hertz; the lowest band begins there
LEAST_POWER = 1e-30  # is added to a power, since the logarithm of 0 is minus infinity
Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Sound:
    """Converts a sound to an input: the log-mel spectrogram of its audible part.

    It cuts off the quiet beginning and end, computes levels in decibels below the loudest,
    stretches the rest to `frames`, and normalizes it by its own mean and standard deviation.

    Args:
        rate: samples per second, 4,000 to 192,000; other rates are resampled.
        bands: the number of bands, of equal width on the mel scale (O'Shaughnessy 1987), from 60 Hz
            to half the rate.
        frames: the number of columns of an input.
        window: samples of a frame, under a Hann window; frames overlap by half.
        floor: decibels below the loudest level that count as silence, so that the noise of a
            microphone does not identify the speaker.
        quiet: decibels below the loudest frame; quieter frames at both ends are cut off.
        longest: the greatest length of the audible part, in seconds.
    """

    rate: int = 8_000
    bands: int = 24
    frames: int = 32
    window: int = 200
    floor: float = 35.0
    quiet: float = 30.0
    longest: float = 3.0

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "rate": RATES,
            "bands": (1, 256),
            "frames": (1, 4096),
            "window": (16, 65_536),
            "floor": (1, 255),  # levels above the floor are stored in a byte
            "quiet": (1, 255),
            "longest": (SHORTEST, 60),
        }
        for name, (low, high) in ranges.items():
            value = vars(self)[name]
            if not low <= value <= high:
                raise DataError(f"data.transform.{name} must be from {low} to {high}; got {value}")
        # A band that is narrower than the distance of two frequencies may have none of them.
        if 0 in self._mel.sum(1):
            raise DataError(
                f"data.transform.bands={self.bands} are too many: {self.window} samples at "
                f"{self.rate} Hz leave some of them empty; take fewer, or a longer window"
            )

    def __call__(self, content: bytes) -> tuple[Tensor, list[str]]:
        """Converts a WAV file to an input.

        Args:
            content: the bytes of the file, PCM samples of 8 to 32 bits.

        Returns:
            The input, float32 (1, bands, frames), and a note for each conversion that this file
            needed, such as resampling.

        Raises:
            DataError: it is not a WAV file, is silent, or its audible part is too long.
        """
        wav = read_wav(content)
        samples = wav.samples
        notes = []
        if wav.channels > 1:
            notes.append(f"{wav.channels} channels averaged")
        if wav.rate != self.rate:
            from scipy.signal import resample  # type: ignore[import-untyped]  # 0.4 s to import

            samples = resample(samples, max(1, round(len(samples) * self.rate / wav.rate)))
            notes.append(f"{wav.rate} samples a second, resampled to {self.rate}")
        seconds = len(samples) / self.rate
        levels, audible_seconds = self.levels(samples)
        if seconds - audible_seconds > NOTABLE:
            notes.append(
                f"{audible_seconds:.2f} of {seconds:.2f} s heard, the rest quiet and cut off"
            )
        return self.normalize(torch.from_numpy(levels)[None])[0], notes

    def levels(self, samples: Samples) -> tuple[NDArray[np.uint8], float]:
        """Computes the levels of a sound.

        Args:
            samples: float64 (n,) from -1 to 1, `rate` per second.

        Returns:
            Levels, uint8 (bands, frames), decibels above the floor, the highest band first; and the
            length of the audible part in seconds.

        Raises:
            DataError: the sound is silent, or its audible part is too short or too long.
        """
        if not len(samples) or np.abs(samples - samples.mean()).max() < SILENT:
            raise DataError("it must be a sound, and is silent")

        # Which frames are audible, from the first to the last that is loud enough.
        power = self._compute_power(samples)
        power_of_frames = power.sum(0)
        audible_share = 10 ** (-self.quiet / 10)  # decibels are ten times the logarithm of a power
        (audible_frames,) = np.nonzero(power_of_frames > audible_share * power_of_frames.max())
        first = int(audible_frames[0])
        end = int(audible_frames[-1]) + 1
        hop = self.window // 2  # the samples from the beginning of a frame to that of the next
        audible_samples = min((end - first) * hop, len(samples))
        seconds = audible_samples / self.rate
        if not SHORTEST <= seconds <= self.longest:
            raise DataError(
                f"it must be a sound of {SHORTEST} to {self.longest:g} s; {seconds:.2f} s are heard"
            )

        # The level of each band in these frames, in decibels above the floor.
        relative_power = power[:, first:end] / power.max()
        decibels = 10 * np.log10(relative_power + LEAST_POWER)
        audible_decibels = np.maximum(decibels, -self.floor)  # from -floor to 0
        stretched_decibels = _stretch(audible_decibels, self.frames)  # as many as in each input
        levels = stretched_decibels + self.floor
        highest_band_first = np.round(levels)[::-1]
        return highest_band_first.astype(np.uint8), seconds

    def normalize(self, levels: Tensor) -> Tensor:
        """Normalizes each spectrogram by its own mean and standard deviation.

        Args:
            levels: (n, bands, frames).

        Returns:
            Inputs, float32 (n, 1, bands, frames).
        """
        levels = levels.float()
        centered = levels - levels.mean((1, 2), keepdim=True)
        deviations = centered.std((1, 2), keepdim=True).clamp(min=1e-3)  # not 0, to divide by
        normalized = centered / deviations
        return normalized[:, None]

    def _compute_power(self, samples: Samples) -> Samples:
        """Computes the power in each band of each frame, (bands, n).

        Frames begin every half window, from half a window before the first sample on. The power of
        a band is the sum of the powers of all frequencies, each times its weight in the band.

        Args:
            samples: (samples,).
        """
        hop = self.window // 2
        padded = np.pad(samples, (hop, hop + self.window))
        starts = np.arange(0, len(samples) + 1, hop)
        positions = starts[:, None] + np.arange(self.window)
        frames = padded[positions]  # (n, window)
        # A Hann window weights the samples of a frame: 0 at its ends, 1 in its middle.
        hann_window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        amplitudes = np.abs(np.fft.rfft(frames * hann_window))  # (n, frequencies)
        power_of_frequencies = amplitudes**2
        power: Samples = self._mel @ power_of_frequencies.T  # (bands, frequencies) @ (…, n)
        return power

    @functools.cached_property
    def _mel(self) -> Samples:
        """The weight of each frequency in each band, (bands, frequencies)."""
        return mel_filters(self.rate, self.window, self.bands)


def mel_filters(rate: int, window: int, bands: int) -> Samples:
    """Makes triangular filters of equal width on the mel scale, 2595 log10(1 + hertz / 700).

    The edges of the bands divide the range from 60 Hz to half the rate. The filter of a band rises
    from 0 at the edge before it to 1 at its middle, and falls to 0 at the edge after it.

    Args:
        rate: samples per second.
        window: the samples of a frame.
        bands: the number of bands.

    Returns:
        The weight of each frequency in each band, (bands, window // 2 + 1).
    """
    low = math.log10(1 + LOWEST_FREQUENCY / 700)
    high = math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** np.linspace(low, high, bands + 2) - 1)  # in hertz
    widths = np.diff(edges)
    frequencies = np.arange(window // 2 + 1) * rate / window
    # Band i rises from edge i, is 1 at edge i + 1, and falls to edge i + 2. The bands have
    # `bands + 2` edges. Either line goes on below 0 and above 1, and a weight is the lower of both.
    distances = frequencies - edges[:, None]  # (edges, frequencies)
    rising = distances[:-2] / widths[:-1, None]  # (bands, frequencies)
    falling = -distances[2:] / widths[1:, None]  # (bands, frequencies)
    return np.maximum(0, np.minimum(rising, falling))


class Wav(NamedTuple):
    """The content of a WAV file.

    Args:
        samples: the mean over all channels, (n,) from -1 to 1.
        rate: samples per second.
        channels: the number of channels in the file.
    """

    samples: Samples
    rate: int
    channels: int


def read_wav(content: bytes) -> Wav:
    """Reads the content of a WAV file of PCM samples of 8 to 32 bits, and averages its channels.

    Raises:
        DataError: it is not such a file, or one of its numbers is out of bounds.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            # The width is the bytes of a sample, the count that of the samples of one channel.
            channels, width, rate, count, *_ = file.getparams()
            if width > 4:
                raise ValueError(f"{8 * width} bits a sample")
            if count * channels <= MOST_SAMPLES:  # more are refused below
                body = file.readframes(count)
    except Exception as error:  # the library may raise anything for a damaged header
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(f"it must be a WAV file of PCM samples: {reason}") from None
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"it must have {RATES[0]} to {RATES[1]} samples a second; got {rate}")
    if count * channels > MOST_SAMPLES:
        raise DataError(
            f"it must have at most {MOST_SAMPLES:_} samples, and says {count * channels}"
        )
    if len(body) != count * channels * width:
        raise DataError(
            f"its header says {count * channels * width} bytes of sound, and {len(body)} follow"
        )
    samples = _decode_samples(body, width).reshape(count, channels).mean(1)
    return Wav(samples, rate, channels)


def _decode_samples(body: bytes, width: int) -> Samples:
    """Decodes samples, and scales them to -1 to 1.

    Args:
        body: the bytes of all samples.
        width: the bytes of a sample, 1 to 4. A sample of one byte has no sign.
    """
    if width == 1:
        return np.frombuffer(body, np.uint8) / 128.0 - 1
    if width == 3:
        # NumPy has no integers of three bytes. A fourth byte, the lowest one, is 0.
        four_bytes = np.zeros((len(body) // 3, 4), np.uint8)
        four_bytes[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        return four_bytes.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(body, f"<i{width}") / 2.0 ** (8 * width - 1)


def _stretch(rows: Samples, length: int) -> Samples:
    """Stretches or shrinks rows (n, columns) to `length` columns by linear interpolation.

    A row is divided into `length` equal pieces, and interpolated at the middle of each.
    """
    column_count = rows.shape[1]
    columns = np.arange(column_count)
    # Column 0 reaches from -0.5 to 0.5, so that the row begins at -0.5.
    middles = (np.arange(length) + 0.5) * column_count / length - 0.5
    return np.stack([np.interp(middles, columns, row) for row in rows])
