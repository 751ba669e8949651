"""Search small networks on MNIST for two objectives: accuracy, and as few parameters as it takes.

    python -m studies.pareto
    python -m studies.pareto 'winner.rule="min parameters where accuracy > 0.96"'  # another winner
    python -m studies.pareto sampler=tpe study.name=pareto-tpe
    python -m studies.pareto 'objective.metric=[accuracy,flops]' study.name=flops winner.rule=null

It trains MLPs and CNNs on 3,200 digits, and ends with the Pareto front, the winner by `winner.rule`
and the report. Without a rule the winner is the most accurate network that costs no more than the
baseline.
"""

from studyloom.config import hydra_main
from studyloom.run import run

from omegaconf import DictConfig


@hydra_main(config_path="../conf", config_name="pareto")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
