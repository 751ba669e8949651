"""Search a network that reads a review, the row of a table that comes with it, or both.

    python -m studies.reviews
    python -m studies.reviews 'model.columns=[age,likes,division,class]' study.name=unrated
    studyloom predict runs/reviews studies/samples/reviews.csv

Is a piece of clothing recommended? The data are 22,634 reviews of 1,179 pieces; those of a fifth of
the pieces are the test set. The baseline reads only the text, so that the line
`difference` shows what the table adds to it. It takes 14 trials of 3 epochs.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig

from studies import CONF


@hydra_main(config_path=CONF, config_name="reviews")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
