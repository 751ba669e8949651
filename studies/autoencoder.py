"""Search an autoencoder for two objectives: two networks and optimizers, in a custom loop.

    python -m studies.autoencoder
    python -m studies.autoencoder 'winner.rule="min error where accuracy > 0.9"'    # another winner
    python -m studies.autoencoder objective.folds=3 study.name=folds     # means over three folds

A digit becomes eight numbers. Codes from which the pixels come back (a small error) are not those
off which a linear probe reads the digit (a high accuracy). The loop is in `studies/codes.py`.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="autoencoder")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
