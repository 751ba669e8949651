"""What a dry run shows: the space as a tree, and one configuration from it."""

import optuna
from omegaconf import OmegaConf
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from studyloom.config.values import plain_sections
from studyloom.question.question import Question
from studyloom.space.outline import outline

SHOWN = (
    "model",
    "optimizer",
    "scheduler",
    "train",
    "params",
)  # of the configuration that a dry run samples


def print_dry_run(question: Question, console: Console) -> None:
    """Prints the space as a tree, and one configuration from it."""
    console.print(outline(question.space))
    trial = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(question.config.study.seed)
    ).ask()
    sample = question.at(question.space.suggest(trial))
    console.print(Text("\none configuration of it:", style="bold"))
    sections = plain_sections(sample, *SHOWN)
    sections["train"].pop("loss")
    console.print(
        Padding(Text(OmegaConf.to_yaml(OmegaConf.create(sections)).rstrip()), (0, 0, 0, 2))
    )
