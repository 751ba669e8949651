"""Search a small CNN that hears which digit is spoken, by a speaker whom it has never heard.

    python -m studies.digits_spoken
    python -m studies.digits_spoken data.train.test_speaker=george study.name=george
    studyloom predict runs/digits_spoken studies/samples/seven.wav

The data are 3,000 recordings of six speakers as log-mel spectrograms. One speaker is the test set;
each of the others validates in turn what was trained on the remaining four. How recordings are
varied in training (time, pitch, microphone, SpecAugment) is searched. It takes 6 trials of 12
epochs.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="digits_spoken")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
