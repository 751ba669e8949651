"""Search an MLP or GRU that forecasts the sunspot number of a year from the twelve years before it.

    python -m studies.sunspots
    python -m studies.sunspots objective.folds=4 study.name=rolling      # from four origins in turn
    python -m studies.sunspots objective.metric=rmse study.name=rmse     # another metric

The metric is the mean absolute error; the loss is searched too. The data are the years 1700 to
2008, never shuffled across time: the last 50 are the test set, and the 50 before them
are to choose by. The forecast to beat is persistence: next year is like this year.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="sunspots")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
