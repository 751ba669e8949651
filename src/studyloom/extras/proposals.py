"""What proposers ask of a study, and the points that they propose.

A proposer is a person, a program or an agent. It needs neither the study's config nor its code nor
its data: the database holds what a point is checked against. Nothing here reads a value of the test
part.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from rich.text import Text

from studyloom.commands.options import open_run, print_json
from studyloom.errors import ConfigError
from studyloom.question.rule import read_space as read_tree
from studyloom.space.outline import describe as describe_values
from studyloom.space.outline import outline
from studyloom.space.tree import Group, Leaf, ListLeaf, Node, Space, group_of
from studyloom.storage.attributes import PROPOSED, SPACE
from studyloom.storage.database import read
from studyloom.storage.ledger import untouched
from studyloom.study.early_end import look_ahead, read_bounds
from studyloom.study.rows import trial_rows
from studyloom.study.stored_study import StoredStudy
from studyloom.study.warm_start import place_point, why_closed
from studyloom.study.warm_start import propose as queue
from studyloom.text import kind_of, one_line, shorten_end
from studyloom.views.report import data_words
from studyloom.views.sentence import describe
from studyloom.views.snapshot import take_snapshot
from studyloom.views.terminal import make_console

DEADLINE = 10.0  # seconds to wait for a database that is busy or away
LONGEST = {"by": 40, "why": 500, "point": 100_000}  # characters
TOLD = ("number", "state", "value", "epochs", "seconds", "proposed_by")  # of a trial
MOST_MISTAKES = 20  # of a point that are told
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class StoredSpace:
    """What `warm_start.store_space` has stored; points are placed in it as in a question's space.

    Args:
        tree: the space as configs write it.
        options: which options of each group are searched.
        choices: the option of each group as composed.
        starts: the composed value of each leaf, by its name.
        baseline: whether trial 0 is the configuration as composed.
        share: the share of the budget that may be proposed.
    """

    tree: dict[str, Any]
    options: dict[str, list[str]]
    choices: dict[str, str | None]
    starts: dict[str, Any]
    baseline: bool
    share: float

    @cached_property
    def space(self) -> Space:
        return read_tree(self.tree, lambda group: self.options.get(group, []))

    @property
    def composer(self) -> "StoredSpace":
        return self

    def compose(self, choices: Mapping[str, str]) -> DictConfig:
        """Returns the composed values of the leaves that some choices open."""
        config = OmegaConf.create()
        for leaf in self.space.leaves(choices):
            OmegaConf.update(config, leaf.key, self.starts[leaf.name], merge=False)
        return config

    def most(self, budget: int) -> int:
        """Returns how many trials of a budget may be proposed."""
        return min(budget, int(self.share * budget + 1e-9))  # 0.29 of 100 are 29


def read_space(stored: StoredStudy) -> StoredSpace:
    """Returns what is stored of the space of a study; raises ConfigError if there is nothing."""
    (known,) = stored.attributes(SPACE)
    try:
        return msgspec.convert(known, StoredSpace)
    except msgspec.ValidationError:
        raise ConfigError(
            f"{stored.name}: nothing is stored of its space, against which points are checked; the "
            "command that runs a study stores it, except with sampler=grid, which tries each point "
            "itself, and with an objective that suggests its parameters as it runs"
        ) from None


def propose(stored: StoredStudy, point: str | Mapping[str, Any], by: str, why: str = "") -> int:
    """Checks a point as `study.enqueue` is checked, and puts it into the next free slot.

    Args:
        point: values by parameter name, possibly nested; or such an object in JSON.
        by: who proposes it, and `why`: a line of text each.

    Returns:
        The number of its trial.

    Raises:
        ConfigError: all that is wrong with it; or it is no new point, or there is no room.
    """
    mistakes = [
        f"{name} must be a line of at most {LONGEST[name]} printable characters; "
        f"got {shorten_end(text, 80)!r}"
        for name, text in (("by", by), ("why", why))
        if len(text) > LONGEST[name] or one_line(text) != text or not (text or name == "why")
    ]
    known = read_space(stored)
    try:
        text = point if isinstance(point, str) else json.dumps(point)
        if len(text) > LONGEST["point"]:
            raise ValueError(f"it has more than {LONGEST['point']} characters")
        if not isinstance(parameters := json.loads(text), dict):
            raise ValueError(f"it is {kind_of(parameters)}")
        placed, start = place_point(known, parameters), place_point(known, {}).point
    except (LookupError, RecursionError, ValueError) as error:  # also a name that no key can have
        words = 'the point must be an object in JSON, such as {"lr": 0.01}'
        raise ConfigError(
            [*mistakes, f"{words}: {shorten_end(one_line(str(error)), 200)}"]
        ) from None
    if mistakes := [*mistakes, *placed.wrong, *placed.unasked.values()]:
        raise ConfigError([shorten_end(one_line(line), 300) for line in mistakes[:MOST_MISTAKES]])
    mark = {"by": by, "why": why, "id": uuid.uuid4().hex}
    most = known.most(read_bounds(stored).trials)
    return queue(stored, placed.point, mark, most, start if known.baseline else None)


def ask(stored: StoredStudy) -> dict[str, Any]:
    """Returns what a proposer must know, as `commands.documents.Asked` describes it."""
    known, snapshot, trials = read_space(stored), take_snapshot(stored), stored.trials()
    budget, ended = read_bounds(stored).trials, look_ahead(stored).ending
    ledger, (goal, *_) = stored.ledger, stored.goals
    left, closed = 0, why_closed(stored)
    if ended is None:
        left = len(read(ledger.storage, lambda c: untouched(c, ledger.study_id, budget)))
    proposed = sum(PROPOSED in trial.user_attrs for trial in trials)
    free = left - (known.baseline and not trials)
    about = [str((stored.question() or {}).get("objective._target_") or "")]
    about += [describe(trial, trial.params) for trial in trials[:1]]
    baseline, rows = snapshot.baseline, trial_rows(stored).to_dicts()
    params = {trial.number: trial.params for trial in stored.trials()}
    return {
        "study": stored.name,
        "question": {
            "metric": goal.name,
            "direction": "maximize" if goal.sign > 0 else "minimize",
            "rule": snapshot.rule,
            "baseline": None if baseline is None else (baseline.values or [None])[0],
            "about": "; ".join(filter(None, [*about, data_words(stored, None)])),
        },
        "space": json_schema(known),
        "budget": budget,
        "left": left,
        "proposals_left": 0 if closed else max(0, min(free, known.most(budget) - proposed)),
        "ended": closed,
        "trials": [
            {name: row[name] for name in row if name in TOLD or name.startswith("values.")}
            | {"params": params[row["number"]]}
            for row in rows
        ],
    }


def print_proposed(arguments: Any) -> None:
    """Proposes a point for `studyloom propose`, and prints the number of its trial."""
    stored = open_run(arguments, DEADLINE)
    number = propose(stored, arguments.point, arguments.by, arguments.why)
    if arguments.json:
        print_json({"study": stored.name, "trial": number})
    else:
        print(f"trial {number} of {one_line(stored.name)} waits for the next free worker")


def print_asked(arguments: Any) -> None:
    """Prints for `studyloom ask` what a proposer must know."""
    stored = open_run(arguments, DEADLINE)
    told, console = ask(stored), make_console()
    if arguments.json:
        print_json(told)
        return
    asked, left, of = told["question"], told["left"], told["budget"]
    begun = f"{left} of {of} trials have not begun" if left else f"all {of} trials have begun"
    for line in (
        f"{told['study']}: {asked['direction']} {asked['metric']}; {asked['about']}",
        told["ended"] or f"{begun}; {told['proposals_left']} may be proposed now",
    ):
        console.print(Text(one_line(line)), soft_wrap=True)
    console.print(outline(read_space(stored).space))


def json_schema(known: StoredSpace) -> dict[str, Any]:
    """Describes the points of a space in JSON Schema.

    A parameter is a property of its name. Each group is a `oneOf` of its options, with what each
    opens; a list is an array. What a point leaves out has its default.
    """
    schema = {"$schema": DIALECT, "type": "object", **_open(known.space.nodes, known)}
    if known.space.relations:
        schema["description"] = f"where {' and '.join(map(str, known.space.relations))}"
    return schema | {"unevaluatedProperties": False}


def _open(nodes: Sequence[Node], known: StoredSpace, **chosen: Any) -> dict[str, Any]:
    """Describes what is open once an option is chosen, or at the root."""
    properties, groups = dict[str, Any](chosen), list[Any]()
    for node in nodes:
        match node:
            case Group(name, key, options):
                composed = known.choices.get(group_of(key))
                default = composed if composed in options else next(iter(options))
                branches = []
                for option, inner in options.items():
                    branch = _open(inner, known, **{name: {"const": option}})
                    branches.append(branch | ({} if option == default else {"required": [name]}))
                groups.append({"oneOf": branches})
            case Leaf(name, _, distribution):
                properties[name] = _values(distribution) | {"default": known.starts.get(name)}
            case ListLeaf(name, _, item, length):
                array = {"type": "array", "items": _values(item), "minItems": 1}
                if isinstance(length, IntDistribution):
                    array |= {"minItems": length.low, "maxItems": length.high}
                else:
                    array["description"] = f"as long as {length}"
                properties[name] = array | {"default": known.starts.get(name)}
    return {"properties": properties} | ({"allOf": groups} if groups else {})


def _values(distribution: BaseDistribution) -> dict[str, Any]:
    """Describes the values of a distribution; its words say the step, and where it is log."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return {"enum": [*choices]}
        case IntDistribution(low=low, high=high) | FloatDistribution(low=low, high=high):
            kind = "integer" if isinstance(distribution, IntDistribution) else "number"
            words = describe_values(distribution)
            return {"type": kind, "minimum": low, "maximum": high, "description": words}
    raise AssertionError(distribution)
