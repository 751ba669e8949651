"""Search an MLP or GRU that forecasts the sunspot number of the next year from twelve, for the mean absolute error.

    python -m studies.sunspots
    python -m studies.sunspots objective.folds=4 study.name=rolling      # from four origins, one after the other
    python -m studies.sunspots objective.metric=rmse study.name=rmse     # another question

The years 1700 to 2008, never shuffled across time: the last 50 are sealed, and the 50 before them are to choose by. The
loss is searched too. To be beaten: persistence, which says that next year is like this year.
"""

from omegaconf import DictConfig

from studies import CONF
from studyloom.config import hydra_main
from studyloom.run import run


@hydra_main(config_path=CONF, config_name="sunspots")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
