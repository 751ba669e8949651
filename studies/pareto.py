"""Search small networks on MNIST for two objectives: accuracy, and as few parameters as it takes.

    python -m studies.pareto
    python -m studies.pareto 'winner.rule="max accuracy where parameters < 20_000"'    # another winner of the same search
    python -m studies.pareto sampler=tpe study.name=pareto-tpe
    python -m studies.pareto 'objective.metric=[accuracy,flops]' study.name=flops      # another question

MLPs and CNNs on 3 200 digits; it ends with the Pareto front, the winner by `winner.rule`, and the report.
"""

from omegaconf import DictConfig

from studies import CONF
from studyloom.config import hydra_main
from studyloom.run import run


@hydra_main(config_path=CONF, config_name="pareto")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
