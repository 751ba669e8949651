"""Search small networks on the Wisconsin breast cancer data for ROC AUC, by stratified 5-fold cross-validation.

    python -m studies.breast_cancer
    python -m studies.breast_cancer sampler=grid study.name=grid study.trials=24     # each point of the space once
    python -m studies.breast_cancer objective.metric=f1_macro study.name=f1          # another question

456 of 569 tumours, benign or malignant, of 30 measurements each, to train on and choose by; 113 are sealed. What they
are standardised by comes from the training part of each fold alone, as do the class weights.
"""

from omegaconf import DictConfig

from studies import CONF
from studyloom.config import hydra_main
from studyloom.run import run


@hydra_main(config_path=CONF, config_name="breast_cancer")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
