"""Search how a network joins the image of a digit with a recording of it by a new speaker.

    python -m studies.seen_and_heard
    python -m studies.seen_and_heard model.fusion=sound study.trials=1 study.name=heard

Images and recordings are real; that two of one digit belong together is made up. One speaker is
the test set, and each of the others validates in turn. The baseline reads only the image. Each
part is also trained separately, so that one may be missing, which `python -m studies.pairs
runs/seen_and_heard` tests. It takes 6 trials of 8 epochs.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig

from studies import CONF


@hydra_main(config_path=CONF, config_name="seen_and_heard")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
