"""`studyloom adopt`: prints what a study of another program shows, and writes a report."""

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
from studyloom.extras.adopt.findings import LONGEST, describe_findings
from studyloom.extras.adopt.reading import AdoptedStudy, read_csv, read_database
from studyloom.metrics import ObjectiveValue
from studyloom.text import format_ranges, one_line, shorten_end
from studyloom.views import figures, page
from studyloom.views.charts import Axis
from studyloom.views.page import Head, Section, draw_figure, make_section
from studyloom.views.snapshot import compute_importances
from studyloom.views.terminal import make_console
from studyloom.views.words import explain_no_importances

MOST_DRAWN = 2000  # trials that are drawn, the best among them, and that importances consider
MOST_FIRST = 3  # of the best configurations, which the next search tries first
WIDTH = 13  # characters of a title
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
    findings = describe_findings(study, arguments.trials)
    steps = next_steps(study, renames)
    path = arguments.page
    page.write_page(path, render(study, findings, steps))
    if arguments.json:
        print_json({"study": study.name, "findings": findings, "next": steps, "page": str(path)})
        return
    lines = [f"{title:{WIDTH}}{finding}" for title, finding in findings.items()]
    for line in [study.name, *lines, "", *steps, "", str(path)]:
        make_console().print(one_line(line), soft_wrap=True)


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
    best = [trial for trial in study.ranked if has_written_form(trial)][:MOST_FIRST]
    keys = _config_keys(best, renames)
    valid_keys = {name: key for name, key in keys.items() if is_config_key(key)}
    steps = []
    if study.source is not None and not renames:
        override = f"study.warm_start=[{json.dumps(study.source)}]"
        steps.append(f"python -m studies.NAME {shlex.quote(override)}")
    elif valid_keys:
        override = f"study.enqueue=[{','.join(_format_points(best, valid_keys))}]"
        steps.append(f"python -m studies.NAME {shlex.quote(override)}")
    steps.append(_search_call(study, best))
    invalid = ", ".join(one_line(name) for name in keys if name not in valid_keys)
    if invalid:
        names = shorten_end(invalid, LONGEST)
        fix = "name it with --rename OLD=optimizer.lr"
        steps.append(f"no key of a config is called {names}; {fix}")
    left_out = []
    for trial in study.ranked[:MOST_FIRST]:
        if not has_written_form(trial):
            left_out.append(trial.number)
    if left_out:
        numbers = format_ranges(sorted(left_out))
        steps.append(f"left out, since a choice is NaN or infinite: trials {numbers}")
    return steps


def _config_keys(trials: Sequence[FrozenTrial], renames: Mapping[str, str]) -> dict[str, str]:
    """Returns the config key of each hyperparameter: its new name, or else its own.

    Raises:
        ConfigError: a hyperparameter is renamed to the name of another one.
    """
    keys: dict[str, str] = {}
    for trial in trials:
        for name in trial.params:
            keys[name] = renames.get(name, name)
    for name, key in keys.items():
        if key != name and keys.get(key) == key:
            raise ConfigError(f"--rename {name}={key}: {key} is another hyperparameter")
    return keys


def _search_call(study: AdoptedStudy, best: Sequence[FrozenTrial]) -> str:
    """Returns the Python call that searches an objective, and tries the best trials first."""
    direction = "maximize" if study.sign > 0 else "minimize"
    configurations = [trial.params for trial in best]
    settings = ""
    if configurations:
        settings = f', study={{"enqueue": {configurations!r}}}'
    trials = max(len(study.trials), 1)
    return f"sl.search(objective, trials={trials}, {direction}={study.metric!r}{settings})"


def has_written_form(trial: FrozenTrial) -> bool:
    """Returns True if a command can hold all hyperparameters of a trial."""
    return all(is_writable(setting) for setting in trial.params.values())


def is_writable(setting: object) -> bool:
    """Returns True if a command can hold a setting.

    It can hold text, finite numbers, and lists and mappings of these.
    """
    if isinstance(setting, float):
        return math.isfinite(setting)
    if isinstance(setting, list | tuple):
        return all(is_writable(item) for item in setting)
    if isinstance(setting, dict):
        return all(is_writable(item) for item in setting.values())
    return True


def is_config_key(name: str) -> bool:
    """Returns True if a name can be a key of a config that the search may change."""
    section = name.split(".")[0]
    return NAME.fullmatch(name) is not None and section in SEARCHED


def _format_points(trials: Sequence[FrozenTrial], keys: Mapping[str, str]) -> list[str]:
    """Formats configurations for `study.enqueue`; a trial without any of the keys is left out.

    Args:
        keys: the config key of each hyperparameter that can be named.
    """
    points = []
    for trial in trials:
        settings = []
        for name, value in trial.params.items():
            if name in keys:
                settings.append(f"{keys[name]}:{json.dumps(value)}")
        if settings:
            points.append("{" + ",".join(settings) + "}")
    return points


def render(study: AdoptedStudy, findings: Mapping[str, str], steps: Sequence[str]) -> str:
    """Renders the report of a study."""
    trials = _choose_drawn(study)
    axis = Axis.choose(study.metric, study.sign, [trial.values[0] for trial in study.complete])
    best = None
    if study.ranked:
        best = study.ranked[0]
    marked = {"best": best, "baseline": None}
    history = draw_figure(figures.draw_history, trials, marked, axis)
    curves = draw_figure(figures.draw_curves, trials, marked, axis)
    better = "Higher" if study.sign > 0 else "Lower"
    most = {"best": figures.MOST_BEST, "latest": figures.MOST_LATEST}
    sections = [
        Section("continue", "Continue", [page.Lines(steps)]),
        make_section("search", [history], axis="", better=better),
        make_section("curves", [curves], **most),
        make_section("importances", [draw_figure(_importances, study)]),
    ]
    sentence = f"What the trials of this study show. {findings['trials']}."
    head = Head(study.name, sentence, [page.Facts([*findings.items()])])
    return page.render_report(head, sections)


def _choose_drawn(study: AdoptedStudy) -> list[FrozenTrial]:
    """Returns the trials that are drawn: of many, the best ones and others evenly spaced.

    A trial that is complete without a finite value has no place in a figure.
    """
    finite = {trial.number for trial in study.complete}
    trials = []
    for trial in study.trials:
        if trial.state != TrialState.COMPLETE or trial.number in finite:
            trials.append(trial)
    best = {trial.number for trial in study.ranked[: MOST_DRAWN // 2]}
    stride = 1 + 2 * len(trials) // MOST_DRAWN
    drawn_trials = []
    for position, trial in enumerate(trials):
        if trial.number in best or position % stride == 0:
            drawn_trials.append(trial)
    return drawn_trials


def _importances(study: AdoptedStudy) -> page.Bars | str:
    """Returns Optuna's importances of the hyperparameters, or a sentence that says why not."""
    objective = ObjectiveValue(study.metric, "maximize" if study.sign > 0 else "minimize")
    rated = optuna.create_study(direction=objective.direction)  # in memory
    stride = 1 + len(study.complete) // MOST_DRAWN
    for trial in study.complete[::stride]:
        rated.add_trial(
            create_trial(
                value=trial.values[0],
                params=trial.params,
                distributions=trial.distributions,
            )
        )
    # `importances` reads no more than this of a stored study.
    stored: Any = SimpleNamespace(optuna=rated, objectives=(objective,))
    computed = compute_importances(stored)
    if not computed.shares:
        return explain_no_importances(computed)
    return page.Bars([*computed.shares.items()])
