"""Search a small Transformer that reads Alice in Wonderland letter by letter: a custom loop.

    python -m studies.language
    python -m studies.language params.epochs=24 study.name=longer
    python -m studies.language 'objective.constraints={parameters: "<= 40_000"}' study.name=small

The loop is in `studies/characters.py`. It reports the perplexity on two chapters: between how many
characters the network is in doubt. Eight chapters are trained on, and the last two are the test.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="language")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
