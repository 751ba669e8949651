"""The Python API: run a study and read it. Importing this module does not import torch."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from studyloom.config.runs import read_run
from studyloom.error_display import shorten_tracebacks
from studyloom.errors import ConfigError
from studyloom.storage import opening
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.storage.trial_tables import Rows, curve_rows, trial_rows
from studyloom.storage.urls import start_embedded_server
from studyloom.views.importances import compute_importances
from studyloom.views.snapshot import take_snapshot
from studyloom.views.words import describe_counts, format_parameters, list_facts
from studyloom.winner.result import Result, from_document
from studyloom.worker.stop_trial import stop_trial
from studyloom.worker.stopping import set_control

if TYPE_CHECKING:  # torch takes two seconds to import, and reading a study does not need it
    from torch.nn import Module

    from studyloom.config.invocation import Invocation, Source
    from studyloom.config.study_config import StudyConfig
    from studyloom.winner.predictor import Prediction, Predictor, WinnerFiles

DEADLINE = 10.0  # seconds to wait for a database that is busy or away, when a study is read


@dataclass(frozen=True)
class Trial:
    """A trial as it was when the study was read.

    Attributes:
        number: the trial's number, an integer from 0.
        state: complete, pruned, failed, paused, running or waiting.
        value: the value of the metric; of several objectives, that of the first; None without one.
        values: the value of each objective by its name, such as accuracy and parameters; empty
            without values.
        params: the value of each hyperparameter by its path, such as optimizer.lr.
        config: the resolved sections that determine the value; None until the trial stores them.
    """

    number: int
    state: str
    value: float | None
    values: Mapping[str, float]
    params: Mapping[str, Any]
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class Winner:
    """The winner of a study, as winner.json describes it; `load_winner` loads it from its files.

    Attributes:
        number: the number of the winning trial.
        value: the mean of the metric in re-evaluation, over new seeds; the value in the search if
            no other trial was a candidate.
        params: the value of each hyperparameter by its path.
        test: the mean of the metric on the test set, over the seeds of the final training; None
            without a test, as for a custom training loop without `objective.test` and for an
            Optuna objective.
        baseline_test: the baseline's mean on the test set; None if it was not tested.
        details: all of winner.json: candidates, interval of the difference, seeds, environment.
        run_dir: the folder with the winner's files.
        trust: packages, modules or classes that winner.yaml may name and call.
        make_network: makes the network; None: what the files name.
    """

    number: int
    value: float
    params: Mapping[str, Any]
    test: float | None
    baseline_test: float | None
    details: Mapping[str, Any] = field(repr=False)
    run_dir: Path
    trust: Sequence[str] = field(default=(), repr=False)
    make_network: Any = field(default=None, repr=False)

    @cached_property
    def _files(self) -> "WinnerFiles":
        from studyloom.winner.predictor import read_winner_files

        return read_winner_files(self.run_dir, self.trust)

    @cached_property
    def _predictor(self) -> "Predictor":
        from studyloom.winner.predictor import make_predictor

        return make_predictor(self._files, self.make_network)

    @property
    def config(self) -> Any:
        """The config of winner.yaml, which your functions take; `config.params` for a loop.

        Raises:
            PredictError: the folder has no winner.yaml of this winner.
            ConfigError: winner.yaml names code that is not trusted.
        """
        return self._files.config

    @property
    def network(self) -> "Module":
        """The network in eval mode on the CPU, with the weights of the first seed."""
        return self._predictor.network

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, such as (channels, height, width); () if it is unknown."""
        return self._predictor.shape

    @property
    def states(self) -> Mapping[str, Any]:
        """The state dict of each object that a loop gave to `run.keep`, by its name."""
        return self._files.states

    def restore(self, **parts: Any) -> None:
        """Loads what a loop kept into objects, such as the network that your loop makes.

            winner.restore(policy=policy, value=value)

        Args:
            parts: objects with `load_state_dict`, by the names that the loop gave to `run.keep`.

        Raises:
            PredictError: the loop kept nothing by such a name.
        """
        self._files.restore(parts)

    def predict(
        self,
        inputs: Any,
        *,
        batch: int | None = None,
        softmax: bool | None = None,
        output: str | int | None = None,
    ) -> "Prediction":
        """Predicts classes or numbers.

        A custom training loop may load its own data. Then `data` is not set in the config, and
        nothing is known of the inputs: their second dimension may be time or nodes.

        Args:
            inputs: a tensor or an array (n, *shape), or one input (*shape). They are converted like
                those of a .npy file: for images, integers are pixels from 0 to 255. A network of
                several inputs gets a mapping or tuple of them, which may be nested, such as the
                state (h, c) of an LSTM.
            batch: how many entries of the first dimension the network gets in one call. None: 256
                if `data` is set, since the first dimension is then that of the examples; everything
                in one call if it is not set.
            softmax: True: a softmax over the second dimension turns the outputs (n, classes, …)
                into probabilities. False: `values` holds the outputs, unchanged. None: a softmax if
                the metric is one of classification, except that these outputs stay unchanged:
                a single column; rows that sum to 1; and, if `data` is not set, outputs of three
                dimensions or more.
            output: which one of several outputs, by its name or position; None: the first.

        Returns:
            The predictions, in the order of the inputs.

        Raises:
            PredictError: the inputs have another shape, or are not finite numbers.
        """
        return self._predictor.predict(inputs, batch=batch, softmax=softmax, output=output)

    def _repr_html_(self) -> str:
        """Renders the facts of the result and the hyperparameters as a table, for a notebook."""
        result = from_document(self.details, Result)
        rows: list[tuple[str, object]] = [("trial", self.number)]
        for fact in list_facts(result):
            text = str(replace(fact, label=""))  # the label is in the first column
            rows.append((fact.label, text))
        rows.append(("hyperparameters", format_parameters(self.params)))
        table = Rows(("", ""), tuple(rows))  # two columns without heads
        return table._repr_html_()


def _make_winner(result: Result, run_dir: Path) -> Winner:
    """Makes the API's object for the winner of a result, whose files are in a run directory."""
    candidate = result.winner
    value = candidate.mean
    if value is None:  # no other trial was a candidate, so that none was trained again
        value = candidate.search_value
    winner_test = None
    baseline_test = None
    if result.test is not None:
        winner_test = result.test.winner.mean
        if result.test.baseline is not None:
            baseline_test = result.test.baseline.mean
    return Winner(
        number=candidate.trial,
        value=value,
        params=candidate.params,
        test=winner_test,
        baseline_test=baseline_test,
        details=result.document(),
        run_dir=run_dir,
    )


def load_winner(run_dir: str | Path, trust: Sequence[str] = (), *, network: Any = None) -> Winner:
    """Loads the winner of a study: its network in eval mode on the CPU, with its weights.

        winner = load_winner("runs/mnist")
        print(winner.predict(images).classes)

    The winner of a custom training loop has what the loop kept, see `Winner.restore`. It makes its
    network when it first predicts, which it can if `objective.network` or `network` names it.

    No file of the folder is executed, so that it may be untrusted. Its config may name networks of
    studyloom and torch, and what `trust` names; a folder in which you ran a command may name any.
    If a script of yours defines the network, that script is run up to the line that searches.

    Args:
        run_dir: the folder in which the study ran, such as runs/mnist.
        trust: packages, modules or classes that winner.yaml may name and call; none by default.
        network: a network, or a class or function that makes one from those hyperparameters that
            its signature names, such as `network=Net`; for code that is in no file. If a loop kept
            several objects, {"policy": Net} names the one that predicts. None: as winner.yaml says.

    Returns:
        The winner.

    Raises:
        PredictError: the folder has no winner, or its files cannot be used.
        ConfigError: winner.yaml names code that is not trusted.
    """
    from studyloom.winner.predictor import read_winner_files

    folder = Path(run_dir)
    files = read_winner_files(folder, trust)
    winner = _make_winner(files.result, folder)
    winner = replace(winner, trust=trust, make_network=network)
    vars(winner)["_files"] = files  # fills the cached property, which would read the files again
    if not files.is_of_loop:
        winner.network  # noqa: B018  # makes it, so that its errors are raised here
    return winner


class Study:
    """A study in its database, which may still be running: each access reads the current state.

    `run`, `search` and `open_study` return it. As a context manager it closes its connections:

        with open_study("runs/mnist") as study:
            print(study.best.params, study.winner)

    Args:
        stored: the study in its database.
        run_dir: the folder in which it runs; None if only the database is known.

    Attributes:
        run_dir: the folder in which it runs; None if it was opened by its URL.
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
        """The trials, one row each: a pandas DataFrame, or `Rows` if pandas is not installed.

        The columns are number, state (complete, pruned, failed, paused, running or waiting), value,
        hyperparameters as params.NAME, standard_error, started, seconds, epochs, worker, baseline,
        failure and reason; of several objectives also values.NAME.
        """
        return _make_frame(trial_rows(self._stored))

    def curves(self) -> Any:
        """Returns the learning curves, one row for each epoch of each trial.

        Returns:
            A pandas DataFrame, or `Rows` if pandas is not installed. Its columns are trial, epoch,
            value, train_loss, valid_loss, and whatever else a custom training loop reports.
        """
        return _make_frame(curve_rows(self._stored))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns the rows of `trials` as a list of dicts; it does not need pandas."""
        return trial_rows(self._stored).to_dicts()

    @property
    def best(self) -> Trial | None:
        """The best trial of the search by the study's rule; None before a trial is complete."""
        return self._make_trial(take_snapshot(self._stored).best)

    @property
    def best_trial(self) -> Trial:
        """The best trial of the search, as `best`, for programs of Optuna.

        Raises:
            ValueError: no trial is complete, or none satisfies the rule of the winner.
        """
        best = self.best
        if best is not None:
            return best
        if any(trial.state == TrialState.COMPLETE for trial in self._stored.trials()):
            raise ValueError("no complete trial satisfies winner.rule")
        raise ValueError("no trial is complete yet")

    @property
    def best_params(self) -> Mapping[str, Any]:
        """The hyperparameters of `best_trial`; raises as it does."""
        return self.best_trial.params

    @property
    def best_value(self) -> float:
        """The value of `best_trial`; raises as it does."""
        value = self.best_trial.value
        assert value is not None  # a complete trial has one
        return value

    @property
    def baseline(self) -> Trial | None:
        """The trial of the default configuration; None before it is complete."""
        return self._make_trial(take_snapshot(self._stored).baseline)

    @property
    def winner(self) -> Winner | None:
        """The winner of the re-evaluation, with its test where there is one.

        None before the winner is known, and always if the study was opened by its URL: the result
        is in the run directory.
        """
        result = self._read_result()
        if result is None or self.run_dir is None:
            return None
        return _make_winner(result, self.run_dir)

    def _read_result(self) -> Result | None:
        """Reads the result in the run directory, if it belongs to this study; None without one."""
        if self.run_dir is None:
            return None
        return Result.read(self.run_dir, self._stored)

    @property
    def optuna(self) -> optuna.Study:
        """The study as an `optuna.Study`, for `optuna.visualization` and everything else."""
        return self._stored.optuna

    @property
    def importances(self) -> dict[str, float]:
        """How much each hyperparameter matters, the most important first; the sum is 1.

        It sets the best quarter of the trials apart from the others, by PED-ANOVA on the values of
        all trials at one epoch, which nearly all have reached. It is empty with fewer than 20
        trials that have a value. The report and `studyloom status` show the same numbers.

        Examples:
            >>> study.importances  # doctest: +SKIP
            {'optimizer.adamw.lr': 0.47, 'model': 0.27, 'train.batch_size': 0.26}
        """
        return dict(compute_importances(self._stored).shares)

    def to_yaml(self, folder: str | Path = "conf") -> Path:
        """Writes the definition of a study of `search` as a YAML config, for `studyloom run FILE`.

        Args:
            folder: where NAME.yaml is written, conf by default; arrays go to folder/NAME.

        Returns:
            The path of the config.

        Raises:
            ConfigError: the study was not made by `search`, or its definition has classes and
                functions of a notebook or script, or Dataset objects, which YAML cannot name.
        """
        from studyloom.definition.python_study import write_definition

        if self.run_dir is None:
            raise ConfigError("the study was opened by its URL; open it by its run directory")
        return write_definition(self.run_dir, Path(folder))

    def report(self, folder: str | Path | None = None) -> Path:
        """Writes report.html: optimization history, hyperparameter importance, winner and test.

        Args:
            folder: where to write it; None: the folder in which the study runs.

        Returns:
            The path of report.html.

        Raises:
            ConfigError: no folder is given, and the study was opened by its URL.
            OSError: the folder cannot be written to.
        """
        from studyloom.views.report import write_report

        if folder is not None:
            report_folder = Path(folder)
        elif self.run_dir is not None:
            report_folder = self.run_dir
        else:
            raise ConfigError(
                "folder must be given, since the study was opened by its URL: report('folder')"
            )
        # The report reads the winner and the logs in the run directory. If that is not known, the
        # report has them only if `folder` is the run directory.
        run_dir = self.run_dir
        if run_dir is None:
            run_dir = report_folder
        return write_report(self._stored, run_dir, report_folder)

    def stop(self, *, trial: int | None = None) -> None:
        """Stops the study, or one of its trials, as `studyloom stop` does; it does not wait.

        The workers of a study that is stopped release their trials after the epoch, and the same
        call or command resumes it. A trial that is stopped ends as pruned at its next report, or at
        once if no worker trains it; it still counts toward the budget.

            >>> study = studyloom.open_study("runs/mnist")  # doctest: +SKIP
            >>> study.stop(trial=7)  # doctest: +SKIP

        Args:
            trial: the number of the trial; None for the whole study.

        Raises:
            ConfigError: there is no trial of this number, or it has ended.
        """
        if trial is None:
            set_control(self._stored, "stop")
        else:
            stop_trial(self._stored, trial)

    def close(self) -> None:
        """Closes the connections to the database."""
        self._stored.close()

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<studyloom.Study {describe_counts(take_snapshot(self._stored))}>"

    def _repr_html_(self) -> str:
        """Renders the study for a notebook: result, notable trials, history, and the report."""
        from studyloom.views.notebook import render_study

        return render_study(self._stored, self.run_dir, self._read_result())

    def _make_trial(self, optuna_trial: FrozenTrial | None) -> Trial | None:
        """Makes the API's object for one of Optuna's trials; None for None."""
        if optuna_trial is None:
            return None
        first_value = None
        values_by_name: dict[str, float] = {}
        if optuna_trial.values:
            first_value = optuna_trial.values[0]
            objectives = self._stored.objectives
            for objective, value in zip(objectives, optuna_trial.values, strict=False):
                values_by_name[objective.name] = value
        record = TrialRecord(optuna_trial)
        return Trial(
            number=optuna_trial.number,
            state=record.outcome,
            value=first_value,
            values=values_by_name,
            params=dict(optuna_trial.params),
            config=record.config,
        )


def _make_frame(rows: Rows) -> Any:
    """Returns rows as a pandas DataFrame, or unchanged if pandas is not installed."""
    try:
        pandas = import_module("pandas")  # an extra
    except ImportError:
        return rows
    return pandas.DataFrame.from_records(list(rows.cells), columns=list(rows.columns))


@shorten_tracebacks
def open_study(run_dir_or_url: str | Path, name: str | None = None) -> Study:
    """Opens an existing study to read it, even while it is running.

        study = open_study("runs/mnist")
        study = open_study("mnist")  # the same, as `search` writes to runs/NAME
        study = open_study("postgresql://host/studies", "mnist")

    Args:
        run_dir_or_url: the folder in which the study runs, such as runs/mnist, or only its name if
            the folder is in `runs`; or a storage URL.
        name: the study's name; None: the study of the folder, or the only one in the database.

    Returns:
        The study. It reads the database at each access; `close` it, or use it in a `with`.

    Raises:
        ConfigError: no study has run in the folder.
        StorageError: the database cannot be used, has no study of that name, or has several
            studies and `name` is None.
    """
    if "://" in str(run_dir_or_url):
        url = start_embedded_server(str(run_dir_or_url))
        stored = opening.open_only_study(url, name, DEADLINE, message="name must be given")
        return Study(stored)
    run_dir = _find_run_dir(Path(run_dir_or_url)).absolute()
    run_url, name_in_folder = read_run(run_dir)
    url = start_embedded_server(run_url)
    stored = opening.open_study(url, name or name_in_folder, DEADLINE)
    return Study(stored, run_dir)


def _find_run_dir(path: Path) -> Path:
    """Returns the folder of a study: the path, or for the name of a study its folder in `runs`."""
    folder_of_name = Path("runs") / path
    is_only_a_name = len(path.parts) == 1 and not path.exists()
    if is_only_a_name and folder_of_name.is_dir():
        return folder_of_name
    return path


def run_from_python(
    source: "Source", overrides: Sequence[str] = (), *, quiet: bool = False
) -> Study:
    """Runs a study for `studyloom.run`, unless that is called in a study module's `hydra_main`."""
    from studyloom.config.invocation import find_invocation

    return _run_invocation(find_invocation(source, overrides), overrides, quiet=quiet)


def _run_invocation(
    invocation: "Invocation",
    overrides: Sequence[str],
    *,
    quiet: bool,
    is_call: bool = False,
    notes: Sequence[str] = (),
    callbacks: Sequence[Callable[..., object]] = (),
) -> Study:
    """Runs the study of an invocation in this process, unless its launcher starts workers.

    Args:
        invocation: composes the study's config.
        overrides: Hydra overrides of the config.
        quiet: whether neither progress nor result is printed.
        is_call: whether the study is that of a call of `search`, and no file has its config.
        notes: lines that are printed before the first trial.
        callbacks: called with the study and each trial of the search that ends.
    """
    from studyloom.worker.task import Command

    # The time of the study is counted from here: a notebook may have been open for days.
    start = time.monotonic()
    kind = "call"
    if "ipykernel" in sys.modules:
        kind = "cell"

    def run_config(config: "StudyConfig", arguments: tuple[str, ...]) -> Study:
        """Runs the study of a composed config.

        `invocation.call` composes the config of the overrides, and calls this function with it.

        Args:
            arguments: the overrides, with which a command composes the same config.
        """
        # Imports torch, for which errors of the config must not wait.
        from studyloom.commands.run_call import run_call

        command = Command(
            program=invocation.program,
            arguments=arguments,
            age=lambda: time.monotonic() - start,
            is_call=is_call,
            kind=kind,
        )
        study = run_call(config, command, quiet=quiet, notes=notes, callbacks=callbacks)
        stored = opening.open_study(study.prepared.url, study.stored.name, DEADLINE)
        return Study(stored, study.run_dir.absolute())

    return invocation.call(overrides, run_config)


@shorten_tracebacks
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
    sampler: str | type | Mapping[str, Any] | BaseSampler | None = None,
    pruner: str | type | Mapping[str, Any] | BasePruner | None = None,
    storage: str | None = None,
    run_dir: str | Path | None = None,
    winner: bool | Mapping[str, Any] | None = None,
    test: Callable[..., object] | str | None = None,
    callbacks: Iterable[Callable[[optuna.Study, FrozenTrial], object]] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Study:
    """Searches the hyperparameters of a network, a training loop or an Optuna objective.

        search(Net, data=(train, test), trials=30,
               space={"model": {"width": Int(4, 256, log=True)},
                      "optimizer": {"lr": Float(1e-4, 1e-1, log=True)}})
        search(train, space={"lr": Float(1e-4, 1e-1, log=True)}, maximize="accuracy")
        search(objective, trials=100, maximize="accuracy")

    Trial 0 is the baseline: the default configuration. The search is followed by two stages:

    * Re-evaluation trains the best 3 trials and the baseline again, each with 3 new seeds and
      validation splits: (3 + 1) × 3 trainings. The best mean wins, if it is better than that of the
      baseline by more than chance explains (or than `winner={"margin": 0.01}`); else the baseline
      wins.
    * The final training trains winner and baseline on the full training set, each with 3 seeds:
      2 × 3 trainings. Each is tested on the test set, which nothing used before. A custom training
      loop and an Optuna objective have this stage only with a function `test`.

    The same call resumes a study that was interrupted; with more `trials` it continues a finished
    one. Several workers are separate processes; they get what a notebook or script defines.

    By default a network is trained for 10 epochs in batches of 64 with AdamW (learning rate 1e-3,
    cosine decay) and cross-entropy, and compared by its accuracy on the validation set; where the
    targets are an array or tensor of floats, with the mean squared error and by its RMSE.

    Args:
        subject: what is trained: a class of PyTorch or a function that returns a network; a
            training loop `train(run, *, lr=0.001)`, whose defaults are the baseline, or
            `train(config, run)`; or `objective(trial)`, as Optuna calls it. A network gets those of
            `shape` (of one input), `outputs` and `classes` that its signature names, and its
            hyperparameters. A function that names none of the three needs a section `model`.
        space: the hyperparameters and their ranges: of a network by section, such as `model` and
            `optimizer`; of a loop by argument. None: nothing is searched, except what an Optuna
            objective suggests.
        data: (train, test), each a map-style Dataset or a pair of tensors or arrays, inputs (n, …)
            and targets (n,) of classes or (n, outputs) of floats. A single one is divided: a fifth
            becomes the test set. A fifth of the training set becomes the validation set. Or a
            section or option of a config, such as "mnist5k". A loop may load its own: None.
        name: the study's name. None: that of the subject in lower case.
        trials: the budget: how many trials, over all workers and restarts. None: 40.
        maximize: the metric of a network, or the name of the value that a loop reports; a list for
            several objectives. None: accuracy for a network; required for a loop, unless `minimize`
            is given; an Optuna objective is minimized.
        minimize: as `maximize`, for values where less is better, such as "loss".
        workers: how many processes run trials. None: one per GPU, or else one per core; never more
            than trials that are left.
        seed: seeds each trial together with its number, and the splits of the data. None: 0.
        sampler: an option ("tpe", "gp", "cmaes", "random", "grid", …), a sampler of Optuna, its
            class, or a mapping of settings. An object of your own class serves all trials of one
            worker. None: "auto", Optuna's TPE (multivariate, grouped), and after
            ten results "gp", a Gaussian process, if a proposal takes at most 2% of a mean trial.
        pruner: an option ("asha", "median", "hyperband", "none", …), a pruner of Optuna, its class,
            or a mapping of settings. None: ASHA with promotion for a network, and for a loop that
            calls `run.keep` and `run.epochs` in the first trial that ends well; the median for
            another loop or an Optuna objective; no pruner there for several objectives.
        storage: an option such as "postgres", or the URL of a database. None: the variable
            STUDYLOOM_STORAGE; if it is not set, the SQLite file study.db in `run_dir`.
        run_dir: the folder for everything that the study writes. None: runs/NAME.
        winner: settings such as {"top": 5, "seeds": 10}; False: the study ends with its search.
            None: top 3, 3 seeds.
        test: a function that measures winner and baseline on the test set, with new seeds. That of
            a loop is called as `test(config, run, dataset)`, and `run.keep` restores what the
            training kept; that of an Optuna objective as `test(params, seed)`, and trains by
            itself. It returns the value of the metric, or values by name. None: not tested. A
            network is tested without it. The baseline of an Optuna objective is the first
            configuration of `study={"enqueue": [{"x": 0.0}]}`.
        callbacks: functions that are called with the study and each trial of the search that ends,
            as in Optuna, but in this process, whichever process has run the trial. `study.stop()`
            stops the study in order, wherever it runs; an exception stops this call and its
            workers, and is then raised here. None: none.
        quiet: True: prints neither progress nor result.
        settings: any other key of a config, by section or dotted name: train={"epochs": 20}. A
            class or function is given as an object: loss=torch.nn.L1Loss. `studyloom keys` lists
            the keys.

    Returns:
        The study, with its `trials`, `best`, `baseline` and `winner`.

    Raises:
        ConfigError: the arguments have errors; the message lists all of them.
        StudyloomError: as `studyloom.run` raises.

    Examples:
        >>> import torch
        >>> from studyloom import Float, Int, search
        >>> class Net(torch.nn.Sequential):
        ...     def __init__(self, *, shape, classes, width=8):
        ...         layers = torch.nn.Linear(*shape, width), torch.nn.Linear(width, classes)
        ...         super().__init__(layers[0], torch.nn.ReLU(), layers[1])
        >>> inputs = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> targets = (inputs.prod(1) > 0).long()
        >>> space = {"model": {"width": Int(2, 32)}, "optimizer": {"lr": Float(0.001, 0.1)}}
        >>> data = (inputs, targets)
        >>> study = search(Net, data=data, space=space, trials=4, workers=1, quiet=True)
        >>> print(study.winner.number in range(4))
        True
    """
    from studyloom.config.invocation import check_no_study_runs, write_sections
    from studyloom.definition.python_study import read_call

    check_no_study_runs()
    functions = _read_callbacks(callbacks)
    if space is None:
        space = {}
    if run_dir is not None:
        run_dir = str(run_dir)
    storage_key = "storage"
    if "://" in str(storage):
        storage_key = "storage.url"
    if isinstance(winner, bool):
        winner = {"enabled": winner}
    values_by_key: dict[str, object] = {
        "study.name": name,
        "study.trials": trials,
        "study.seed": seed,
        "launcher.workers": workers,
        "run_dir": run_dir,
        "sampler": sampler,
        "pruner": pruner,
        storage_key: storage,
        "winner": winner,
        "objective.test": test,
        **_collect_objective_settings(maximize, minimize),
    }
    all_settings = {key: value for key, value in values_by_key.items() if value is not None}
    all_settings |= settings
    _, *keywords, _ = signature(search).parameters  # without `subject` and `settings`
    study = read_call(subject, space, data, all_settings, keywords)
    invocation = write_sections(study.sections, study.run_dir)
    study.write()  # the arrays, which the sections name as files
    return _run_invocation(
        invocation, (), quiet=quiet, is_call=True, notes=study.notes, callbacks=functions
    )


def _collect_objective_settings(maximize: object, minimize: object) -> dict[str, object]:
    """Returns the settings of the section `objective` for metrics and their directions.

    Both settings are lists if there are several metrics.

    Args:
        maximize: a metric, a list of metrics, or None.
        minimize: likewise.
    """
    metrics = []
    directions = []
    for metric in _as_list(maximize):
        metrics.append(metric)
        directions.append("maximize")
    for metric in _as_list(minimize):
        metrics.append(metric)
        directions.append("minimize")
    if not metrics:
        return {}
    if len(metrics) == 1:
        return {"objective.metric": metrics[0], "objective.direction": directions[0]}
    return {"objective.metric": metrics, "objective.direction": directions}


def _read_callbacks(callbacks: object) -> list[Callable[..., object]]:
    """Returns the functions that a call of `search` gives as `callbacks`.

    Raises:
        ConfigError: they are no list of functions.
    """
    if callbacks is None:
        return []
    if isinstance(callbacks, Iterable):
        functions = [*callbacks]
        if all(callable(function) for function in functions):
            return functions
    raise ConfigError(f"callbacks must be a list of functions (study, trial); got {callbacks!r}")


def _as_list(value: object) -> list[object]:
    """Returns the items of a list or tuple, a list of any other value, and nothing for None."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [*value]
    return [value]
