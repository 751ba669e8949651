"""Search MLPs and CNNs on MNIST for validation accuracy.

python -m studies.mnist                             # resumes if it exists
python -m studies.mnist study.trials=500 launcher.workers=4
python -m studies.mnist data=mnist space=lr study.name=lr    # full MNIST
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="mnist")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
