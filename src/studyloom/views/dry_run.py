"""What a dry run prints: the space as a tree, and one configuration from it."""

import optuna
from omegaconf import OmegaConf
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from studyloom.config.values import plain_sections
from studyloom.question.question import Question
from studyloom.space.outline import outline

# The sections of the sampled configuration that are printed.
SHOWN = ("model", "optimizer", "scheduler", "train", "params")


def print_dry_run(question: Question, console: Console) -> None:
    """Prints the space as a tree, and one configuration that is sampled from it."""
    console.print(outline(question.space))
    sampler = optuna.samplers.RandomSampler(question.config.study.seed)
    trial = optuna.create_study(sampler=sampler).ask()
    sample = question.at(question.space.suggest(trial))
    console.print(Text("\none configuration of it:", style="bold"))
    sections = plain_sections(sample, *SHOWN)
    sections["train"].pop("loss")
    words = OmegaConf.to_yaml(OmegaConf.create(sections)).rstrip()
    console.print(Padding(Text(words), (0, 0, 0, 2)))
