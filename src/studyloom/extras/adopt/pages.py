"""`studyloom adopt`: prints what a study of another program shows, and writes a report."""

import itertools
import json
import math
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from studyloom.commands.options import print_json
from studyloom.config.trust import SEARCHED
from studyloom.errors import ConfigError
from studyloom.extras.adopt.findings import LONGEST, find
from studyloom.extras.adopt.reading import AdoptedStudy, read_csv, read_database
from studyloom.metrics import ObjectiveValue
from studyloom.text import format_ranges, one_line, shorten_end
from studyloom.views import figures, page
from studyloom.views.page import Head, Section, drawn, section
from studyloom.views.snapshot import importances
from studyloom.views.terminal import make_console

SHOWN = 2000  # trials that are drawn or rated, the best among them
TAKEN = 3  # of the best configurations, which the next search tries first
WIDTH = 13  # characters of a title
NAME = re.compile(r"[A-Za-z_][\w.]*")  # of a hyperparameter that a command can name


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
    found = find(study, arguments.trials)
    steps = next_steps(study, renames)
    path = arguments.page
    page.write_page(path, render(study, found, steps))
    if arguments.json:
        print_json({"study": study.name, "findings": found, "next": steps, "page": str(path)})
        return
    lines = [f"{title:{WIDTH}}{words}" for title, words in found.items()]
    for line in [study.name, *lines, "", *steps, "", str(path)]:
        make_console().print(one_line(line), soft_wrap=True)


def parse_renames(pairs: Sequence[str]) -> dict[str, str]:
    """Parses what --rename was given, into the config key of each hyperparameter.

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
    """Reads the study that the arguments of the command name."""
    if not arguments.source.lower().endswith(".csv"):
        return read_database(arguments.source, arguments.study)
    metric = arguments.maximize or arguments.minimize
    if metric is None:
        raise ConfigError("a CSV file needs --maximize COLUMN or --minimize COLUMN")
    names = []
    if arguments.params is not None:
        names = [name for name in arguments.params.split(",") if name]
        if not names:
            raise ConfigError("--params must name columns, with commas between; got none")
    sign = 1 if arguments.maximize else -1
    return read_csv(Path(arguments.source), metric, sign, names)


def next_steps(study: AdoptedStudy, renames: Mapping[str, str]) -> list[str]:
    """Returns commands that continue a study, and lines about what they leave out.

    The first warm-starts a study of a network or custom loop; the second searches the objective.

    Raises:
        ConfigError: a hyperparameter is renamed to the name of another one.
    """
    best = [*itertools.islice(filter(has_written_form, study.ranked), TAKEN)]
    keys = {name: renames.get(name, name) for trial in best for name in trial.params}
    for name, key in keys.items():
        if key != name and keys.get(key) == key:
            raise ConfigError(f"--rename {name}={key}: {key} is another hyperparameter")
    fits = {name: key for name, key in keys.items() if is_config_key(key)}
    steps = []
    if study.source is not None and not renames:
        start = f"study.warm_start=[{json.dumps(study.source)}]"
        steps.append(f"python -m studies.NAME {shlex.quote(start)}")
    elif fits:
        start = f"study.enqueue=[{','.join(_points(best, fits))}]"
        steps.append(f"python -m studies.NAME {shlex.quote(start)}")
    way = "maximize" if study.sign > 0 else "minimize"
    first = [trial.params for trial in best]
    begins = f', study={{"enqueue": {first!r}}}' if first else ""
    trials = max(len(study.trials), 1)
    steps.append(f"sl.search(objective, trials={trials}, {way}={study.metric!r}{begins})")
    unfit = ", ".join(one_line(name) for name in keys if name not in fits)
    if unfit:
        listed = shorten_end(unfit, LONGEST)
        way_out = "name it with --rename OLD=optimizer.lr"
        steps.append(f"no key of a config is called {listed}; {way_out}")
    left_out = [trial.number for trial in study.ranked[:TAKEN] if not has_written_form(trial)]
    if left_out:
        numbers = format_ranges(sorted(left_out))
        steps.append(f"left out, since a choice is NaN or infinite: trials {numbers}")
    return steps


def has_written_form(trial: FrozenTrial) -> bool:
    """Whether a command can hold all hyperparameters of a trial."""
    return all(is_writable(setting) for setting in trial.params.values())


def is_writable(setting: Any) -> bool:
    """Whether a command can hold a setting: text, finite numbers, lists and mappings of these."""
    if isinstance(setting, float):
        return math.isfinite(setting)
    if isinstance(setting, list | tuple):
        return all(is_writable(item) for item in setting)
    if isinstance(setting, dict):
        return all(is_writable(item) for item in setting.values())
    return True


def is_config_key(name: str) -> bool:
    """Whether a key of a config that the search may change can have a name."""
    return NAME.fullmatch(name) is not None and name.split(".")[0] in SEARCHED


def _points(trials: Sequence[FrozenTrial], keys: Mapping[str, str]) -> list[str]:
    """Returns the configurations of trials for `study.enqueue`, those with any of the keys."""
    points = []
    for trial in trials:
        settings = [
            f"{keys[name]}:{json.dumps(value)}"
            for name, value in trial.params.items()
            if name in keys
        ]
        if settings:
            points.append(f"{{{','.join(settings)}}}")
    return points


def render(study: AdoptedStudy, found: Mapping[str, str], steps: Sequence[str]) -> str:
    """Renders the report of a study."""
    best, known = study.ranked, {trial.number for trial in study.complete}
    whole = [t for t in study.trials if t.number in known or t.state != TrialState.COMPLETE]
    kept, stride = {t.number for t in best[: SHOWN // 2]}, 1 + 2 * len(whole) // SHOWN
    shown = [t for place, t in enumerate(whole) if t.number in kept or not place % stride]
    axis = figures.Axis.of(study.metric, study.sign, [trial.values[0] for trial in study.complete])
    marked = {"best": best[0] if best else None, "baseline": None}
    history = drawn(figures.history, shown, marked, axis)
    curves = drawn(figures.curves, shown, marked, axis)
    better = "Higher" if study.sign > 0 else "Lower"
    most = {"best": figures.MOST_BEST, "latest": figures.MOST_LATEST}
    sections = [
        Section("continue", "Continue", [page.Lines(steps)]),
        section("search", [history], axis="", better=better),
        section("curves", [curves], **most),
        section("importances", [drawn(_importances, study)]),
    ]
    sentence = f"What the trials of this study show. {found['trials']}."
    return page.report_page(Head(study.name, sentence, [page.Facts([*found.items()])]), sections)


def _importances(study: AdoptedStudy) -> page.Bars | str:
    """Returns Optuna's importances of the hyperparameters, or a sentence that says why not."""
    objective = ObjectiveValue(study.metric, "maximize" if study.sign > 0 else "minimize")
    rated = optuna.create_study(direction=objective.direction)
    for trial in study.complete[:: 1 + len(study.complete) // SHOWN]:
        named: Any = {"params": trial.params, "distributions": trial.distributions}
        rated.add_trial(create_trial(value=trial.values[0], **named))
    stored: Any = SimpleNamespace(optuna=rated, objectives=(objective,))
    shares = importances(stored)
    return shares if isinstance(shares, str) else page.Bars([*shares.items()])
