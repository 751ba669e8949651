"""Search MLPs on Fashion-MNIST: the search space of Optuna's PyTorch example.

    python -m studies.fashion              # downloads Fashion-MNIST, or finds it in STUDYLOOM_DATA
    python -m studies.fashion study.trials=20 pruner=hyperband study.name=hyperband

The space is 1 to 3 hidden layers of 4 to 128 units with dropout, and Adam, RMSprop or SGD. It takes
100 trials of 10 epochs of 3,840 images.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="fashion")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
