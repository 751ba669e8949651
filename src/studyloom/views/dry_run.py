"""The view of `--dry-run`: the search space, and one configuration of it."""

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from studyloom.config.values import plain_sections, resolved_as_yaml
from studyloom.definition.definition import Definition
from studyloom.space.drawing_configurations import draw_configuration
from studyloom.space.outline import outline

SECTIONS = ("model", "optimizer", "scheduler", "train", "params")  # of the config, to print


def print_dry_run(definition: Definition, console: Console) -> None:
    """Prints the search space as a tree, and one configuration sampled from it."""
    console.print(outline(definition.space))
    if (
        definition.has_optuna_objective
    ):  # an Optuna objective defines its search space only while it runs
        return
    configuration = draw_configuration(definition.space, definition.seed)
    assert configuration is not None  # one was found when the definition was checked
    console.print(Text("\none configuration of it:", style="bold"))
    sections = plain_sections(definition.compose_config(configuration), *SECTIONS)
    sections["train"].pop("loss")  # it repeats the section `loss`, where the user chooses it
    if not definition.reads_train:
        del sections["train"]
    text = resolved_as_yaml(sections).rstrip()
    console.print(Padding(Text(text), (0, 0, 0, 2)))
