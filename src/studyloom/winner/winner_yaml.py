"""winner.yaml: the winner as a config, below the command that does all of it once more."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from studyloom.config.trust import needed_trust, packages_to_trust
from studyloom.config.values import as_yaml, plain_sections, value_at
from studyloom.question.question import SECTIONS
from studyloom.text import one_line
from studyloom.winner.stages import Plan


def winner_yaml(plan: Plan, command: Sequence[str], race: Sequence[str] = ()) -> str:
    """Returns what winner.yaml holds: the config of the winner, below the command that runs it.

    Args:
        plan: the stages of the run.
        command: the command of the study's page.
        race: lines that say how the winner came out of a race.
    """
    config = winner_config(plan)
    return (
        f"# The winner of {plan.search.stored.name}, trial {plan.winner}, "
        f"and this does all of it once more:\n# {one_line(command_for(plan, config, command))}\n"
        f"{''.join(f'# {one_line(line)}{chr(10)}' for line in race)}{as_yaml(config)}"
    )


def command_for(plan: Plan, config: Mapping[str, Any], command: Sequence[str]) -> str:
    """Returns the command that runs winner.yaml, as a person types it.

    It is read as a config from elsewhere, which names no code of one's own by itself.

    Args:
        plan: the stages of the run.
        config: what winner.yaml holds.
        command: the command of the study's page.
    """
    page = plain_sections(plan.question.config, "sampler", "pruner", "launcher")
    named = sorted({*needed_trust(config), *packages_to_trust(page)})
    trust = [f"trust=[{','.join(named)}]"] if named else []
    options = ("--config-dir", str(plan.run_dir), "--config-name", "winner")
    return shlex.join([*command, *options, *trust])


def winner_config(plan: Plan) -> dict[str, Any]:
    """Makes a primary config of the winner with nothing to search, so that it wins again."""
    question, point = plan.question, plan.candidates[plan.winner]
    choices = {**question.composer.choices, **point.choices, "space": "none"}
    own: dict[str, str | None] = {
        group: option for group, option in choices.items() if not group.startswith("hydra/")
    }
    # A group that the command took away, for a section of its own, with ~GROUP.
    removed = [o[1:] for o in question.composer.overrides if o[1:] in SECTIONS and o[0] == "~"]
    own |= dict.fromkeys(removed)
    sections = plain_sections(question.at(point), *(name for name in SECTIONS if name != "space"))
    # In full: what is at its default here may be something else in the page's own config.
    sections["train"] = value_at(question.at(point), "train")
    sections["train"].pop("loss")
    study = question.config.study
    if question.rule is not None:
        # The winner has been chosen already, and the page's own rule may be another.
        sections["winner"] = {"rule": None}
    return {
        "defaults": [
            question.composer.config_name,
            *({f"override /{group}": option} for group, option in own.items()),
            "_self_",
        ],
        "study": {
            "name": f"{study.name}-winner",
            "seed": study.seed,
            "trials": 1,
            "baseline": True,
        },
        **sections,
    }
