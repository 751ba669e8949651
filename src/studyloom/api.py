"""studyloom from Python: run a study, and look at it. Importing this module imports no torch."""

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial

from studyloom.config.runs import read_run
from studyloom.error_display import shown_at_call
from studyloom.errors import ConfigError
from studyloom.pickled import MAIN, OWN, passed_on
from studyloom.storage.urls import serve
from studyloom.study import opening
from studyloom.study.stored_study import Rows, StoredStudy, curve_rows, trial_rows
from studyloom.study.trial_record import TrialRecord
from studyloom.text import error_text, printable
from studyloom.user_code import note_script
from studyloom.views.snapshot import Snapshot, format_parameters, take_snapshot
from studyloom.winner.result import Result

if TYPE_CHECKING:  # torch takes two seconds, which looking at a study need not wait for
    from torch.nn import Module

    from studyloom.config.main import Invocation
    from studyloom.launch.task import Command, Prepared
    from studyloom.winner.predictor import Prediction, Predictor

DEADLINE = 10.0  # seconds that a look at a study waits for a database that is busy or away


@dataclass(frozen=True)
class Trial:
    """A trial as it was when the study was read.

    Attributes:
        number: its number, from 0.
        state: complete, pruned, failed, paused, running or waiting.
        value: the metric; None without a value.
        values: all values by name: the metric, and what the network costs if that is an objective.
        params: the parameters by their path, such as optimizer.lr.
        config: the sections that decide the value, resolved; None until the trial has stored them.
    """

    number: int
    state: str
    value: float | None
    values: Mapping[str, float]
    params: Mapping[str, Any]
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class Winner:
    """The winner of a study, as winner.json has it.

    Attributes:
        number: the trial that won.
        value: the mean over new seeds; the value of the search if no other trial competed.
        params: the parameters of the trial by their path; with `scale`, as at the target.
        config: the sections that decide the value, resolved; None if the trial stored none.
        test: the mean over seeds on the test set; None if nothing was tested, as of a loop without
            `objective.test` and of an Optuna objective.
        baseline_test: the same of the baseline; None if it was not tested.
        details: all of winner.json: candidates, interval of the difference, seeds, environment.
        run_dir: the folder with its files.
    """

    number: int
    value: float
    params: Mapping[str, Any]
    config: Mapping[str, Any] | None = field(repr=False)
    test: float | None
    baseline_test: float | None
    details: Mapping[str, Any] = field(repr=False)
    run_dir: Path

    @cached_property
    def _loaded(self) -> "Predictor":
        from studyloom.winner.predictor import load_winner

        return load_winner(self.run_dir)

    @property
    def network(self) -> "Module":
        """The network, with the weights of the first seed; see `load_winner`."""
        return self._loaded.network

    def predict(self, inputs: Any, **options: Any) -> "Prediction":
        """Predicts the classes or the numbers of inputs; see `studyloom.Predictor.predict`."""
        return self._loaded.predict(inputs, **options)


class Study:
    """A study in its database. It reads anew at each access, so that it also shows one that runs.

    A context that closes the connections to the database. `run`, `search` and `open_study` make it.

    Args:
        stored: the study as it is stored.
        run_dir: the folder in which it runs; None if only the database is known.
    """

    def __init__(self, stored: StoredStudy, run_dir: Path | None = None) -> None:
        self._stored = stored
        self.run_dir = run_dir

    @property
    def name(self) -> str:
        """The name of the study."""
        return self._stored.name

    @property
    def trials(self) -> Any:
        """A row for each trial: a pandas DataFrame, or `Rows` if pandas is not installed.

        The columns are number, state (complete, pruned, failed, paused, running or waiting), value,
        parameters as params.NAME, standard_error, started, seconds, epochs, worker, baseline,
        failure and reason. If trials have several values, there are columns values.NAME.
        """
        return _frame(trial_rows(self._stored))

    def curves(self) -> Any:
        """Returns the learning curves: a row for each epoch of each trial.

        Returns:
            A pandas DataFrame, or `Rows` if pandas is not installed, with the columns trial,
            epoch, value, train_loss and valid_loss, and one for each further quantity that a loop
            of one's own reports.
        """
        return _frame(curve_rows(self._stored))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns the rows of `trials` as dicts, whether or not pandas is installed."""
        return trial_rows(self._stored).to_dicts()

    @property
    def best(self) -> Trial | None:
        """The best trial by the study's rule; None if no trial has a result."""
        return self._trial(self._snapshot().best)

    @property
    def baseline(self) -> Trial | None:
        """The trial of the default configuration; None without a result."""
        return self._trial(self._snapshot().baseline)

    @property
    def winner(self) -> Winner | None:
        """The winner of the re-evaluation, tested if it could be; None if there is none yet."""
        return self._winner_of(self._answer())

    def _answer(self) -> Result | None:
        """Returns the answer in the run directory, if it is of this study."""
        return None if self.run_dir is None else Result.read(self.run_dir, self._stored)

    def _winner_of(self, answer: Result | None) -> Winner | None:
        if answer is None or self.run_dir is None:
            return None
        row, test = answer.winner, answer.test
        frozen = next((t for t in self._stored.trials() if t.number == row.trial), None)
        config, carried = None if frozen is None else TrialRecord(frozen).config, answer.transfer
        if carried is not None and config is not None:
            config = carried.carry(config)
        return Winner(
            number=row.trial,
            value=row.search_value if row.mean is None else row.mean,
            params=row.params if carried is None else {**row.params, **carried.values},
            config=config,
            test=None if test is None else test.winner.mean,
            baseline_test=None if test is None or test.baseline is None else test.baseline.mean,
            details=answer.document(),
            run_dir=self.run_dir,
        )

    @property
    def optuna(self) -> optuna.Study:
        """The study as an `optuna.Study`, for `optuna.visualization` and everything else."""
        return self._stored.optuna

    def to_yaml(self, folder: str | Path = "conf") -> Path:
        """Writes the question as a primary config, which asks the same: `studyloom run FILE`.

        Args:
            folder: that of the configs; arrays go to a folder below it.

        Raises:
            ConfigError: the study is not one of `search`, or names what a notebook or script
                defines, or objects, which a config cannot.
        """
        from studyloom.definition.python_study import write_definition

        if self.run_dir is None:
            raise ConfigError("the study was opened by its URL; open it by its run directory")
        return write_definition(self.run_dir, Path(folder))

    def report(self, folder: str | Path | None = None) -> Path:
        """Writes report.html, one page with everything that the study found so far.

        Args:
            folder: where to write it; None for the folder in which the study runs.

        Returns:
            The path of the page.

        Raises:
            ConfigError: no folder is given, and the study was opened by its URL.
            OSError: the folder cannot be written to.
        """
        from studyloom.views.report import write_report

        target = self.run_dir if folder is None else Path(folder)
        if target is None:
            raise ConfigError(
                "folder must be given, since the study was opened by its URL: report('folder')"
            )
        return write_report(self._stored, self.run_dir or target, target)

    def close(self) -> None:
        """Closes the connections to the database."""
        self._stored.close()

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<studyloom.Study {self._snapshot().headline}>"

    def _repr_html_(self) -> str:
        """The answer in a sentence, counts, best, baseline, and the winner with its test.

        For a notebook; what the database or a file holds is shown as text.
        """
        snapshot, answer = self._snapshot(), self._answer()
        winner = self._winner_of(answer)
        lines = list[tuple[str, int, str, Mapping[str, Any]]]()
        for what, frozen in (("best", snapshot.best), ("baseline", snapshot.baseline)):
            if (trial := self._trial(frozen)) is not None:
                values = ", ".join(f"{name} {value:.6g}" for name, value in trial.values.items())
                lines.append((what, trial.number, values, trial.params))
        if winner is not None:
            means = {"test": winner.test, "test of the baseline": winner.baseline_test}
            tested = (f"{what} {mean:.6g}" for what, mean in means.items() if mean is not None)
            lines.append(("winner", winner.number, ", ".join(tested), winner.params))
        cells = [(what, f"trial {n}", said, format_parameters(p)) for what, n, said, p in lines]
        rows = ["".join(f"<td>{escape(printable(cell))}</td>" for cell in row) for row in cells]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        sentence = escape(snapshot.quotable(self._stored, answer))
        return f"<p><b>{sentence}.</b></p><p>{escape(snapshot.headline)}</p><table>{body}</table>"

    def _snapshot(self) -> Snapshot:
        return take_snapshot(self._stored)

    def _trial(self, frozen: FrozenTrial | None) -> Trial | None:
        if frozen is None:
            return None
        names = (goal.name for goal in self._stored.goals)
        values = dict(zip(names, frozen.values or (), strict=False))
        record, value, params = (
            TrialRecord(frozen),
            next(iter(values.values()), None),
            frozen.params,
        )
        return Trial(frozen.number, record.outcome, value, values, dict(params), record.config)


def _frame(rows: Rows) -> Any:
    try:
        pandas = import_module("pandas")  # an extra
    except ImportError:
        return rows
    return pandas.DataFrame.from_records(list(rows.cells), columns=list(rows.columns))


@shown_at_call
def open_study(run_dir_or_url: str | Path, name: str | None = None) -> Study:
    """Opens a study that exists, also one that runs just now.

    Args:
        run_dir_or_url: the folder in which it runs, such as runs/mnist; or a storage URL.
        name: of the study; None for the one that runs in the folder, or the only one of the
            database.

    Raises:
        ConfigError: no study has run in the folder.
        StorageError: the database cannot be used, has no study of that name, or has several and
            none was named.
    """
    if "://" in str(run_dir_or_url):
        url = serve(str(run_dir_or_url))
        return Study(opening.open_only_study(url, name, DEADLINE, "name must be given"))
    run_dir = Path(run_dir_or_url).absolute()
    url, its_name = read_run(run_dir)
    return Study(opening.open_study(serve(url), name or its_name, DEADLINE), run_dir)


def run_from_python(
    source: str | Path | DictConfig, overrides: Sequence[str] = (), *, quiet: bool = False
) -> Study:
    """Runs a study for `studyloom.run`, where no page calls it."""
    from studyloom.config.main import invocation_of

    return _run(invocation_of(source, overrides), overrides, quiet=quiet)


def _run(
    invocation: "Invocation", overrides: Sequence[str], *, quiet: bool, is_call: bool = False
) -> Study:
    from studyloom.launch.task import Command

    began = time.monotonic()

    def conduct(cfg: DictConfig, arguments: tuple[str, ...]) -> Study:
        # The time since the process began is that of a notebook, and not that of the study.
        program = invocation.program
        kind = "cell" if "ipykernel" in sys.modules else "call"
        command = Command(program, arguments, lambda: time.monotonic() - began, is_call, kind)
        return _conduct(cfg, command, quiet=quiet)

    return invocation.call(overrides, conduct)


@shown_at_call
def search(
    subject: Callable[..., Any],
    *,
    space: Mapping[str, Any] | None = None,
    data: Any = None,
    name: str | None = None,
    trials: int | None = None,
    maximize: str | Sequence[str] | None = None,
    minimize: str | Sequence[str] | None = None,
    workers: int | None = None,
    seed: int | None = None,
    sampler: str | type | Mapping[str, Any] | None = None,
    pruner: str | type | Mapping[str, Any] | None = None,
    storage: str | None = None,
    run_dir: str | Path | None = None,
    winner: bool | Mapping[str, Any] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Study:
    """Searches the parameters of a network, of a training loop or of an objective of Optuna's.

        search(Net, data=(train, test), trials=30,
               space={"model": {"width": Int(4, 256, log=True)},
                      "optimizer": {"lr": Float(1e-4, 1e-1, log=True)}})
        search(train, space={"lr": Float(1e-4, 1e-1, log=True)}, maximize="accuracy")
        search(objective, trials=100, maximize="accuracy")

    The same call resumes the study, and with more `trials` goes on with it. What a notebook or a
    script defines may be searched by several workers, which are processes of their own.

    Args:
        subject: a network, a class of PyTorch or a function that returns one, which gets `shape`
            (of one input) and `outputs` or `classes` where its signature has them, and the values
            of the space. A function that takes none of these needs a section `model`;
            a loop `train(run, *, lr=0.001)`, whose defaults are the baseline, or `(config, run)`;
            or `objective(trial)`, as Optuna calls it.
        space: of a network by section, such as `model` and `optimizer`; of a loop by parameter.
        data: (train, test), each a Dataset or a pair of inputs (n, …) and targets as tensors or
            arrays; one of these alone is divided. Or a section or option of a config.
        name: of the study; None for that of the subject, in lower case.
        maximize: the metric of a network, or what a loop reports; several are several objectives.
        winner: settings of the section; False: the study ends with its search.
        settings: what else a config has, by section or dotted name: train={"epochs": 20}. A class
            or function is named in the config, as the subject is: loss=torch.nn.L1Loss.

    Returns:
        The study: its trials, its best, and the winner. That of a network was tested once; that of
        a loop too, where `objective.test` names a function; that of Optuna's objective was not.

    Raises:
        ConfigError: all mistakes; and what else `studyloom.run` raises.
    """
    from studyloom.config.main import of_sections
    from studyloom.definition.python_study import ask

    more, less = _names(maximize), _names(minimize)
    metrics = [*more, *less]
    directions = ["maximize"] * len(more) + ["minimize"] * len(less)
    single = len(metrics) == 1
    named = {
        "study.name": name,
        "study.trials": trials,
        "study.seed": seed,
        "launcher.workers": workers,
        "run_dir": None if run_dir is None else str(run_dir),
        "sampler": sampler,
        "pruner": pruner,
        "storage.url" if "://" in str(storage) else "storage": storage,
        "winner": {"enabled": winner} if isinstance(winner, bool) else winner,
        "objective.metric": (metrics[0] if single else metrics) if metrics else None,
        "objective.direction": (directions[0] if single else directions) if metrics else None,
    }
    given = {key: value for key, value in named.items() if value is not None}
    asked = ask(subject, {} if space is None else space, data, given | settings)
    invocation = of_sections(asked.sections, asked.run_dir)
    asked.write()
    for words in () if quiet else asked.notes:
        print(words)
    return _run(invocation, (), quiet=quiet, is_call=True)


def _names(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list | tuple) else [value] * (value is not None)


def _conduct(cfg: DictConfig, command: "Command", *, quiet: bool) -> Study:
    """Runs a composed study in this process, unless its launcher starts workers."""
    from studyloom.commands.outputs import Outputs, take_environment
    from studyloom.commands.search import search_and_report
    from studyloom.launch.process import exit_code
    from studyloom.launch.search import open_search, prepare
    from studyloom.launch.task import make_task
    from studyloom.study.stopping import Stop, following
    from studyloom.winner.stages import ResultStages

    if cfg.study.dry_run:
        raise ConfigError("study.dry_run begins no study; use the command: --dry-run")
    error: Exception | None = None
    with Stop(cfg.study.timeout) as stop, ExitStack() as passing:
        passing.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        outputs = Outputs(take_environment())
        outputs.console.quiet, outputs.console.lasting = quiet, False
        code, reason = 2, None  # until the study is open, as of the command
        try:
            outputs.open()
            prepared = prepare(cfg)
            named, digests, used = _to_pass_on(cfg, prepared)
            passing.enter_context(passed_on(named, known=digests, used=used))
            search = open_search(prepared, stop, ResultStages, create=True)
            prepared, plan = passing.enter_context(search)
            if f": {MAIN}" in OmegaConf.to_yaml(cfg):
                note_script(prepared.run_dir)
            code = 1
            # No fork server: a fork would hang if this process has run OpenMP's threads before.
            task = make_task(prepared, plan, command)
            with following(plan.search.stored, stop):
                code = search_and_report(task, stop, outputs)
        except Exception as caught:
            reason = error_text(caught)
            if stop.signal is None:
                raise
            error = caught
        finally:
            outputs.finish(exit_code(code, stop), reason)
    if stop.signal is not None:
        with suppress(KeyboardInterrupt):  # of Python's own handler, which has no words
            signal.raise_signal(stop.signal)  # for the caller's own handler, now that it is back
        words = f"the study was stopped; the same {command.kind} resumes it"
        raise KeyboardInterrupt(words) from error
    stored = opening.open_study(prepared.url, str(cfg.study.name), DEADLINE)
    return Study(stored, prepared.run_dir.absolute())


def _to_pass_on(
    cfg: DictConfig, prepared: "Prepared"
) -> tuple[list[str], dict[str, str], list[str]]:
    """Returns what only this program has, by name, the digests of its sources, and its globals.

    Nothing if there will be no other process.

    Raises:
        ConfigError: the workers are on other hosts, which it cannot reach.
    """
    from studyloom.definition.sources import CODE, main_globals, targets

    launcher = prepared.launcher
    workers = launcher.count(2) * getattr(launcher, "ranks", 1)
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    named = [each for each in dict.fromkeys(targets(plain)) if each.startswith(OWN)]
    # With a time limit for trials, a single worker is a process too.
    if not named or (workers < 2 and cfg.study.trial_timeout is None):
        return [], {}, []
    if launcher.leaves_host:
        raise ConfigError(
            f"{', '.join(named)}: is known only to this program, and the launcher starts workers "
            "on other hosts; move it into a module that those have"
        )
    digests = {key.removeprefix(CODE): each for key, each in prepared.definition.code.items()}
    digests = {key: each for key, each in digests.items() if f"{key}.".startswith(MAIN)}
    return named, digests, [*main_globals(named)]
