"""Sounds: valid, odd and hostile WAV files, and their spectrograms."""

import numpy as np
import pytest
from sounds import hostile_wavs, sweep, wav

from studyloom.data.sound import Sound, mel_filters, read_wav
from studyloom.errors import DataError

SOUND = Sound()


def test_mel_filters_equal_those_of_librosa():
    """Made by librosa.filters.mel(sr=8000, n_fft=200, n_mels=24, fmin=60, htk=True, norm=None)."""
    filters = mel_filters(8000, 200, 24)
    peaks = [3, 4, 6, 8, 10, 12, 14, 17, 19, 22, 25, 28, 32, 35, 39, 43, 48, 53, 58, 64, 70, 77]
    assert filters.argmax(1).tolist() == [*peaks, 84, 92]
    sums = [1.618553, 1.503716, 1.746524, 1.887122, 1.966766, 2.170513, 2.322657, 2.427875]
    assert filters[:8].sum(1) == pytest.approx(sums, abs=1e-6)
    assert filters[-2:].sum(1) == pytest.approx([7.417881, 7.948281], abs=1e-6)


def test_a_sound_of_another_rate_is_resampled_with_a_note():
    expected, notes = SOUND(wav(sweep(0.5, 300, 1800, 8000), 8000))
    assert notes == []
    for rate in (4001, 44100, 96000):
        inputs, notes = SOUND(wav(sweep(0.5, 300, 1800, rate), rate))
        assert notes == [f"{rate} samples a second, resampled to 8000"]
        assert inputs.shape == (1, 24, 32)
        assert (inputs - expected).abs().mean() < 0.1


def test_samples_of_every_width_have_one_scale():
    samples = sweep(0.1, 300, 1800, 8000)
    for width in (1, 2, 3, 4):
        for channels in (1, 2):
            content = wav(samples, 8000, width, channels)
            sound = read_wav(content)
            assert (sound.rate, sound.channels) == (8000, channels)
            assert np.abs(sound.samples - samples).max() < (0.02 if width == 1 else 1e-4)
            _, notes = SOUND(content)
            assert notes == (["2 channels averaged"] if channels == 2 else [])


def test_quiet_ends_are_cut_off_and_loudness_does_not_matter():
    word = sweep(0.4, 300, 1800, 8000)
    expected, _ = SOUND(wav(word, 8000))
    noise = np.random.default_rng(0).normal(size=8000) * 1e-3
    inputs, notes = SOUND(wav(np.concatenate([noise, word / 4, noise]), 8000))
    assert (inputs - expected).abs().mean() < 0.15
    assert notes == ["0.41 of 2.40 s heard, the rest quiet and cut off"]


def test_a_hostile_file_is_refused_in_one_line():
    for content, message in hostile_wavs().values():
        with pytest.raises(DataError, match=message) as caught:
            SOUND(content)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 200


def test_an_argument_out_of_range_is_named():
    with pytest.raises(DataError, match=r"data\.transform\.window must be from 16 to 65536; got 1"):
        Sound(window=1)
