"""Search small networks on the Wisconsin breast cancer data, by 5-fold cross-validated ROC AUC.

    python -m studies.breast_cancer
    python -m studies.breast_cancer sampler=grid study.name=grid study.trials=24  # a grid search
    python -m studies.breast_cancer objective.metric=f1_macro study.name=f1       # another metric

The data are 569 tumours, benign or malignant, with 30 measurements each: 456 to train on and choose
by, in stratified folds, and 113 as the test set. The scale of the inputs and the class
weights are learned only from the training set of each fold.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="breast_cancer")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
