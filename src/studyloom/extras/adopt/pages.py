"""`studyloom adopt`: prints what a study of another program shows, and writes a report."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from studyloom.commands.options import print_json
from studyloom.config.trust import SEARCHED
from studyloom.extras.adopt.findings import LONGEST, find
from studyloom.extras.adopt.reading import AdoptedStudy, read_csv, read_database
from studyloom.metrics import Goal
from studyloom.text import one_line, shorten_end
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
    renames = dict(pair.partition("=")[::2] for pair in arguments.rename)
    if not all(renames.values()):
        raise ValueError("--rename must be OLD=NEW, such as lr=optimizer.adamw.lr")
    if arguments.source.lower().endswith(".csv"):
        if (metric := arguments.maximize or arguments.minimize) is None:
            raise ValueError("a CSV file needs --maximize COLUMN or --minimize COLUMN")
        sign, names = 1 if arguments.maximize else -1, arguments.params
        study = read_csv(Path(arguments.source), metric, sign, names.split(",") if names else ())
    else:
        study = read_database(arguments.source, arguments.study)
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


def next_steps(study: AdoptedStudy, renames: Mapping[str, str]) -> list[str]:
    """Returns two commands that continue a study, and a line about names that no config has.

    The first warm-starts a study of a network or custom loop; the second searches the objective.
    """
    best = study.complete[:TAKEN]
    named = {old: renames.get(old, old) for trial in best for old in trial.params}
    fits = {o: n for o, n in named.items() if NAME.fullmatch(n) and n.split(".")[0] in SEARCHED}
    points = [{fits[n]: each for n, each in t.params.items() if n in fits} for t in best]
    start = f"study.warm_start=[{json.dumps(study.source)}]"
    if renames or study.source is None:
        items = (",".join(f"{n}:{json.dumps(v)}" for n, v in p.items()) for p in points if p)
        start = f"study.enqueue=[{','.join(f'{{{each}}}' for each in items)}]"
    way = "maximize" if study.sign > 0 else "minimize"
    first = [trial.params for trial in best]
    call = f"sl.search(objective, trials={max(len(study.trials), 1)}, {way}={study.metric!r}"
    steps = [
        f"python -m studies.NAME {shlex.quote(start)}",
        f'{call}, study={{"enqueue": {first!r}}})',
    ]
    unfit = shorten_end(", ".join(one_line(name) for name in named if name not in fits), LONGEST)
    words = f"no key of a config is called {unfit}; name it with --rename OLD=optimizer.lr"
    return [*steps, words] if unfit else steps


def render(study: AdoptedStudy, found: Mapping[str, str], steps: Sequence[str]) -> str:
    """Renders the report of a study."""
    best, known = study.complete, {trial.number for trial in study.complete}
    whole = [t for t in study.trials if t.number in known or t.state != TrialState.COMPLETE]
    kept, stride = {t.number for t in best[: SHOWN // 2]}, 1 + 2 * len(whole) // SHOWN
    shown = [t for place, t in enumerate(whole) if t.number in kept or not place % stride]
    axis = figures.Axis.of(study.metric, study.sign, [trial.values[0] for trial in best])
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
    goal = Goal(study.metric, "maximize" if study.sign > 0 else "minimize")
    rated = optuna.create_study(direction=goal.direction)
    for trial in study.complete[:: 1 + len(study.complete) // SHOWN]:
        named: Any = {"params": trial.params, "distributions": trial.distributions}
        rated.add_trial(create_trial(value=trial.values[0], **named))
    stored: Any = SimpleNamespace(optuna=rated, goals=(goal,))
    shares = importances(stored)
    return shares if isinstance(shares, str) else page.Bars([*shares.items()])
