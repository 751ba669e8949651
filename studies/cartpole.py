"""Search REINFORCE's settings on CartPole: an objective that is a function and trains by itself.

    pip install -e '.[rl]'
    python -m studies.cartpole                                 # 40 trials, 90 s of processor time
    python -m studies.cartpole params.episodes=32 study.name=wide
    python -m studies.cartpole study.trials=80 launcher.workers=4

The function is in `studies/reinforce.py`, which knows nothing of studyloom but how it is called:
`(config, report) -> value`. A mean reward of 195 counts as solved.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="cartpole")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
