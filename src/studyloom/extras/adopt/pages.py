"""`studyloom adopt`: prints what a study of another program shows, and writes a report."""

import json
import math
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from studyloom.commands.options import print_json
from studyloom.config.trust import SEARCHABLE_SECTIONS
from studyloom.errors import ConfigError
from studyloom.extras.adopt.findings import (
    MAX_LENGTH,
    describe_findings,
    examine,
    make_headline,
)
from studyloom.extras.adopt.reading import (
    AdoptedStudy,
    find_runs,
    read_csv,
    read_database,
    read_runs,
)
from studyloom.text import format_ranges, one_line, shorten_end
from studyloom.views import page
from studyloom.views.advice import explain_basis, explain_no_importances
from studyloom.views.axes import Axis
from studyloom.views.charts import Block
from studyloom.views.consoles import make_console
from studyloom.views.importances import Importances, compare_values, rate_hyperparameters
from studyloom.views.page import Head, Section, make_section
from studyloom.views.search_sections import render_curves, render_history
from studyloom.views.terminal_lines import say

MAX_DRAWN = 2000  # trials that are drawn, the best among them
FIRST_TRIALS = 3  # the number of the best configurations that the next search tries first
TITLE_WIDTH = 13  # characters
NAME = re.compile(r"[A-Za-z_][\w.]*")  # the name of a hyperparameter, as commands can write it


def adopt(arguments: Any) -> None:
    """Reads a study, prints what it shows and how to continue it, and writes a report."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    page.check_page(arguments.page)  # before the study is read, which may take minutes
    renames = parse_renames(arguments.rename)
    if arguments.trials is not None and arguments.trials < 1:
        raise ConfigError(f"--trials must be a positive integer; got {arguments.trials}")
    with warnings.catch_warnings():  # Optuna warns of choices such as lists, and accepts them
        warnings.simplefilter("ignore", UserWarning)
        study = read_study(arguments)
    evidence = examine(study)
    headline = shorten_end(one_line(make_headline(study, evidence)), MAX_LENGTH)
    findings = describe_findings(study, evidence, arguments.trials)
    steps = next_steps(study, renames)
    path = arguments.page
    page.write_page(path, render(study, headline, findings, steps))
    if arguments.json:
        document = {
            "study": study.name,
            "headline": headline,
            "findings": findings,
            "next": [step.text for step in steps],
            "page": str(path),
        }
        print_json(document)
        return
    console = make_console()
    print_adopted(console, study.name, headline, findings, steps)
    say(console, one_line(str(path)))


def print_adopted(
    console: Console,
    name: str,
    headline: str,
    findings: Mapping[str, str],
    steps: Sequence["Step"],
) -> None:
    """Prints what a study shows: the headline, the findings by title, and how to continue.

    Sentences are broken between words; code stays as it is, so that it can be copied.
    """
    say(console, one_line(name))
    say(console, headline, "bold")
    console.print()
    for title, finding in findings.items():
        say(console, f"{title:{TITLE_WIDTH}}{finding}", indent=TITLE_WIDTH)
    console.print()
    for step in steps:
        if step.is_code:
            say(console, f"{step.title}:")
            console.print(step.text, soft_wrap=True)
        else:
            say(console, step.text)
        console.print()


def parse_renames(pairs: Sequence[str]) -> dict[str, str]:
    """Parses the pairs of --rename into the config key of each hyperparameter.

    Raises:
        ConfigError: a pair is not OLD=NEW, or two have the same OLD or NEW.
    """
    renames: dict[str, str] = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        if not old or not new:
            raise ConfigError(
                f"--rename must be OLD=NEW, such as lr=optimizer.adamw.lr; got {pair}"
            )
        if old in renames:
            raise ConfigError(f"--rename {pair}: {old} is renamed twice; leave one out")
        if new in renames.values():
            raise ConfigError(f"--rename {pair}: another one is renamed to {new}; name another key")
        renames[old] = new
    return renames


def read_study(arguments: Any) -> AdoptedStudy:
    """Reads the study that the arguments of the command name, whichever program has stored it."""
    metric = arguments.maximize or arguments.minimize
    sign = -1
    if arguments.maximize:
        sign = 1
    names: list[str] = []
    if arguments.params is not None:
        names = [name for name in arguments.params.split(",") if name]
        if not names:
            raise ConfigError("--params must name columns, with commas between; got none")
    if arguments.source.lower().endswith(".csv"):
        if metric is None:
            raise ConfigError("a CSV file needs --maximize COLUMN or --minimize COLUMN")
        return read_csv(Path(arguments.source), metric, sign, names)
    runs = find_runs(arguments.source)
    if runs is not None:
        return read_runs(runs, arguments.study, metric, sign, names)
    return read_database(arguments.source, arguments.study)


@dataclass(frozen=True)
class Step:
    """A command or call that continues a study, or a note on what they leave out.

    Args:
        text: the code, or the sentence of a note.
        title: what the code does, without a final mark; empty for a note.
    """

    text: str
    title: str = ""

    @property
    def is_code(self) -> bool:
        """True for code, which stays as it is; False for a sentence."""
        return bool(self.title)


def next_steps(study: AdoptedStudy, renames: Mapping[str, str]) -> list[Step]:
    """Returns two commands that continue a study, and notes on what they leave out.

    The first command runs a study of a network or custom loop, and the second calls `sl.search`
    with the Optuna objective. Both try the best configurations first. The first one is left out if
    it can name neither the study's database nor a hyperparameter by a config key.

    Args:
        renames: the config key of each hyperparameter that the user renames.

    Raises:
        ConfigError: a hyperparameter is renamed to the name of another one.
    """
    best_trials = [trial for trial in study.ranked if has_written_form(trial)][:FIRST_TRIALS]
    keys = _map_config_keys(best_trials, renames)
    valid_keys = {name: key for name, key in keys.items() if is_config_key(key)}
    steps = []
    override = None
    if study.source is not None and not renames:  # a warm start takes the names as they are stored
        override = f"study.warm_start=[{json.dumps(study.source)}]"
    elif valid_keys:
        override = f"study.enqueue=[{','.join(_format_configurations(best_trials, valid_keys))}]"
    if override is not None:
        command = f"python -m studies.NAME {shlex.quote(override)}"
        steps.append(Step(command, "Continue in a study module, which studyloom new writes"))
    title = "Continue with an objective or a training loop in Python"
    steps.append(Step(_search_call(study, best_trials), title))

    invalid_names = [one_line(name) for name in keys if name not in valid_keys]
    if invalid_names:
        names = shorten_end(", ".join(invalid_names), MAX_LENGTH)
        fix = "name it with --rename OLD=optimizer.lr"
        steps.append(Step(f"no key of a config is called {names}; {fix}"))
    omitted_numbers = []
    for trial in study.ranked[:FIRST_TRIALS]:
        if not has_written_form(trial):
            omitted_numbers.append(trial.number)
    if omitted_numbers:
        numbers = format_ranges(sorted(omitted_numbers))
        steps.append(Step(f"left out, since a choice is NaN or infinite: trials {numbers}"))
    return steps


def _map_config_keys(trials: Sequence[FrozenTrial], renames: Mapping[str, str]) -> dict[str, str]:
    """Returns the config key of each hyperparameter: its new name, or else its own.

    Raises:
        ConfigError: a hyperparameter is renamed to the name of another one.
    """
    keys: dict[str, str] = {}
    for trial in trials:
        for name in trial.params:
            keys[name] = renames.get(name, name)
    for name, key in keys.items():
        is_renamed = key != name
        other_keeps_name = keys.get(key) == key  # the hyperparameter that is called `key`
        if is_renamed and other_keeps_name:
            raise ConfigError(f"--rename {name}={key}: {key} is another hyperparameter")
    return keys


def _search_call(study: AdoptedStudy, best_trials: Sequence[FrozenTrial]) -> str:
    """Returns the Python call that searches an objective, and tries the best trials first."""
    trials = max(len(study.trials), 1)
    arguments = f"objective, trials={trials}, {study.direction}={study.metric!r}"
    if not best_trials:
        return f"sl.search({arguments})"
    lines = ["sl.search(", f"    {arguments},", "    study={'enqueue': ["]
    lines += [f"        {trial.params!r}," for trial in best_trials]
    lines += ["    ]},", ")"]
    return "\n".join(lines)


def has_written_form(trial: FrozenTrial) -> bool:
    """Returns True if all hyperparameters of a trial can be written in a command."""
    return all(is_writable(value) for value in trial.params.values())


def is_writable(value: object) -> bool:
    """Returns True if a value can be written in a command.

    Finite numbers can be written, and lists and mappings of writable values. So can all other
    values that a choice may have: text, booleans and None.
    """
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(is_writable(item) for item in value)
    if isinstance(value, dict):
        return all(is_writable(item) for item in value.values())
    return True


def is_config_key(name: str) -> bool:
    """Returns True if a name can be a key of a config that the search may change."""
    section, _, _ = name.partition(".")
    return NAME.fullmatch(name) is not None and section in SEARCHABLE_SECTIONS


def _format_configurations(trials: Sequence[FrozenTrial], keys: Mapping[str, str]) -> list[str]:
    """Formats configurations for `study.enqueue`; a trial without any of the keys is left out.

    Args:
        keys: the config key of each hyperparameter that can be named.
    """
    configurations = []
    for trial in trials:
        entries = []
        for name, value in trial.params.items():
            if name in keys:
                entries.append(f"{keys[name]}:{json.dumps(value)}")
        if entries:
            configurations.append("{" + ",".join(entries) + "}")
    return configurations


def render(
    study: AdoptedStudy, headline: str, findings: Mapping[str, str], steps: Sequence[Step]
) -> str:
    """Renders the report of a study as HTML.

    Args:
        headline: the most important findings in a sentence.
        findings: what the trials show, by title.
        steps: the commands that continue the study.
    """
    trials = _choose_drawn_trials(study)
    values = [trial.values[0] for trial in study.complete]
    axis = Axis.choose(study.metric, study.sign, values)
    best = None
    if study.ranked:
        best = study.ranked[0]
    marked_trials = {"best": best, "baseline": None}
    importances = _rate_hyperparameters(study)
    bars: Block = page.Bars([*importances.shares.items()])
    if not importances.shares:
        bars = page.Absent(explain_no_importances(importances))
    early_trials = _find_early_trials(trials)
    sections = [
        Section("continue", "Continue the study", _list_steps(steps)),
        render_history(trials, marked_trials, axis, early_trials=early_trials),
        render_curves(trials, marked_trials, axis),
        make_section("importances", [bars], basis=explain_basis(importances)),
    ]
    head = Head(study.name, headline, [page.Facts([*findings.items()])])
    return page.render_report(head, sections)


def _list_steps(steps: Sequence[Step]) -> list[Block]:
    """Returns the blocks of the steps: code below its title, and then the notes."""
    blocks: list[Block] = []
    for step in steps:
        if step.is_code:
            blocks.append(page.Paragraph(f"{step.title}:"))
            blocks.append(page.Code(step.text))
    notes = [step.text for step in steps if not step.is_code]
    if notes:
        blocks.append(page.Lines(notes))
    return blocks


def _find_early_trials(trials: Sequence[FrozenTrial]) -> set[int]:
    """Returns the numbers of the trials that were pruned at their first report.

    Their values are those of an untrained model, which would squeeze all others together.
    """
    early = set()
    for trial in trials:
        if trial.state == TrialState.PRUNED and len(trial.intermediate_values) <= 1:
            early.add(trial.number)
    return early


def _choose_drawn_trials(study: AdoptedStudy) -> list[FrozenTrial]:
    """Returns the trials that are drawn: of many, the best ones and others evenly spaced.

    The best ones may be half of MAX_DRAWN, and so may the others. A trial that is complete without
    a finite value has no place in a figure.
    """
    numbers_with_value = {trial.number for trial in study.complete}
    drawable_trials = []
    for trial in study.trials:
        if trial.state != TrialState.COMPLETE or trial.number in numbers_with_value:
            drawable_trials.append(trial)
    half = MAX_DRAWN // 2
    best_numbers = {trial.number for trial in study.ranked[:half]}
    stride = 1 + len(drawable_trials) // half
    drawn_trials = []
    for position, trial in enumerate(drawable_trials):
        if trial.number in best_numbers or position % stride == 0:
            drawn_trials.append(trial)
    return drawn_trials


def _rate_hyperparameters(study: AdoptedStudy) -> Importances:
    """Returns the importances of the hyperparameters for the metric."""
    compared = compare_values(study.trials)
    return rate_hyperparameters(study.trials, compared, study.sign)
