"""The result of a study, which is stored as winner.json in its run directory.

The keys of winner.json are the fields of these types. They hold no sentences: `views/words.py`
makes all of these. Reading a result does not import torch.
"""

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from studyloom.averages import Interval
from studyloom.errors import PredictError
from studyloom.files import is_trusted, read_text, write_whole
from studyloom.metrics import ObjectiveValue
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import one_line
from studyloom.winner.explanation_values import Explanations

CARD = "model_card.md"
SIMPLE = "winner.simple.yaml"
RESULT_FILES = ("winner.json", "winner.yaml", "winner.pt", CARD, "report.html", SIMPLE)
DtypeName = Literal["float32", "int32", "int64"]
T = TypeVar("T")
STAGES = ("re-evaluation", "final-training")  # stages that may reuse earlier trainings


@dataclass(frozen=True)
class Summary:
    """Values that differ only by their seed.

    Attributes:
        std: None for fewer than three values.
        interval: the 95% interval of the mean; None if it is unknown.
    """

    mean: float
    std: float | None = None
    interval: Interval | None = None
    values: tuple[float, ...] = ()

    @property
    def is_same_for_all_seeds(self) -> bool:
        """Returns whether several seeds gave the same value, bit for bit.

        The training then ignores the seed.
        """
        return len(self.values) > 1 and len(set(self.values)) == 1

    @property
    def error_bounds(self) -> Interval:
        """The mean minus and plus its standard error; the mean twice if the error is unknown."""
        if self.std is None:
            return self.mean, self.mean
        seeds = len(self.values) or 1
        standard_error = self.std / math.sqrt(seeds)
        return self.mean - standard_error, self.mean + standard_error


@dataclass(frozen=True)
class Candidate:
    """A trial of the search that may have won.

    Attributes:
        costs: the values of further objectives by name.
        values: a value for each new seed whose training did not fail; empty without a
            re-evaluation, as `mean`, `std` and `interval` are then None.
        selection_gap: how much better `search_value` is than `mean`; above 0 if the search
            overrated the candidate. None for a trial that the search has stopped early.
        stopped_at_epoch: the epoch of `search_value`, if the search has stopped the trial there.
        failed_trainings: how many of its trainings with new seeds failed, each of them twice.
    """

    trial: int
    params: dict[str, Any]
    search_value: float
    costs: dict[str, float] = field(default_factory=dict)
    baseline: bool = False
    values: tuple[float, ...] = ()
    mean: float | None = None
    std: float | None = None
    interval: Interval | None = None
    selection_gap: float | None = None
    stopped_at_epoch: int | None = None
    failed_trainings: int = 0

    @property
    def reevaluation(self) -> Summary | None:
        """The values on new seeds; None without a re-evaluation."""
        if self.mean is None:
            return None
        return Summary(self.mean, self.std, self.interval, self.values)


@dataclass(frozen=True)
class Comparison:
    """The best candidate compared with the baseline on new seeds; it wins if its gain is larger.

    Attributes:
        trial: the number of the best candidate's trial.
        gain: by how much its mean is better than the baseline's; below 0 if it is worse.
        error: the standard error of the gain; 0 if it is unknown.
        margin: the gain that it needs to win.
        margin_is_set: whether the user has set the margin, by `winner.margin`.
        seeds: the number of new seeds with which both were trained.
    """

    trial: int
    gain: float
    error: float
    margin: float
    margin_is_set: bool
    seeds: int

    @property
    def is_won(self) -> bool:
        """Returns whether the candidate wins; if not, the baseline does."""
        return self.gain > self.margin


@dataclass(frozen=True)
class Scores:
    """The results on the test set.

    Attributes:
        intervals_cover: the sources of chance in the intervals: seeds, examples, or seeds and
            examples.
        baseline: None if it is missing or has won, as is `difference`.
        references: the values of rules without a network, such as the most frequent class.
        simple: the values of the simple configuration; None if it is not tested, or not another.
        further_values: what the user's test function has measured beside the metric, by name, for
            each seed.
        test_set_uses: how often results of the study have used the test set so far.
        tested_before: whether an earlier result had tested these networks.
        used_in_selection: whether the winner was chosen by the values of these networks, which are
            not representative then: the difference to the baseline has no interval.
    """

    winner: Summary
    intervals_cover: str
    baseline: Summary | None = None
    difference: Summary | None = None
    examples: int | None = None
    references: dict[str, float] = field(default_factory=dict)
    further_values: tuple[dict[str, float], ...] = ()
    test_set_uses: int = 1
    tested_before: bool = False
    simple: Summary | None = None
    used_in_selection: bool = False


@dataclass(frozen=True)
class RangeFacts:
    """The range of the training inputs, as `studyloom.data.transform.InputRange` has it."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    means: Interval


@dataclass(frozen=True)
class DataFacts:
    """The facts about the data that one needs to use the network.

    Attributes:
        digest: the SHA-256 of the training set.
        shape: the shape of one input; None if it is not one tensor.
        mean: the number that was subtracted from pixels from 0 to 1.
        std: the number by which they were divided then.
        from_dataset: whether the examples come from a Dataset.
        input_dtype: the type of the inputs of a Dataset, such as int64.
        has_reader: whether a `Reader` of the study makes inputs from files.
        transform: a section whose `_target_` makes an input from a file.
    """

    digest: str
    test_digest: str
    shape: tuple[int, ...] | None
    outputs: int | None
    mean: float
    std: float
    dtype: DtypeName = "float32"
    classifies: bool = True
    class_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    input_range: RangeFacts | None = None
    from_dataset: bool = False
    input_dtype: str | None = None
    has_reader: bool = False
    transform: dict[str, Any] | None = None

    @property
    def takes_arrays(self) -> bool:
        """Returns whether an input is one tensor, so that an array can hold it."""
        return self.has_reader or self.shape is not None

    @property
    def loads_tokens(self) -> bool:
        """Returns whether inputs are integers of a Dataset, such as token ids.

        A `Reader` makes its inputs from files instead.
        """
        return self.from_dataset and not self.has_reader and str(self.input_dtype).startswith("int")

    @property
    def takes_integers(self) -> bool:
        """Returns whether the network gets integers."""
        return self.dtype != "float32" or self.loads_tokens


@dataclass(frozen=True)
class Wrong:
    """A wrong prediction of a class; `image` is a PNG in a data URL, if the input is an image."""

    index: int
    label: int
    predicted: int
    confidence: float
    image: str | None = None


@dataclass(frozen=True)
class Predictions:
    """The predictions of a network, and the targets; `in_time_order` if in time order."""

    predicted: tuple[tuple[float, ...], ...]
    targets: tuple[tuple[float, ...], ...]
    in_time_order: bool = False


@dataclass(frozen=True)
class InputPrediction:
    """The class of one input, with its name and probability, or numbers, or a map of either.

    Attributes:
        values: the numbers; those of a map row after row.
        class_name: the name of the class.
        labels: the class at each place of a map, row after row.
        shape: the shape of a map; empty for a class, and for a row of numbers.
        note: how the input was changed, and how it differs from the training data.
    """

    name: str
    label: int | None = None
    confidence: float | None = None
    values: tuple[float, ...] = ()
    class_name: str = ""
    note: str = ""
    labels: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class AblationRow:
    """A hyperparameter of the winner that was put back to its default.

    Attributes:
        value: the value that the winner has.
        values: the metric for each seed with the default; empty if a training failed.
        worse_by: how much worse the mean of `values` is than the winner's.
        needed: whether `worse_by` is above zero by more than chance explains.
    """

    name: str
    value: Any
    default: Any
    values: tuple[float, ...] = ()
    worse_by: float | None = None
    needed: bool = True


@dataclass(frozen=True)
class Ablation:
    """The winner compared with itself without each of its changes to the default configuration.

    Attributes:
        rows: the changes, the most needed one first.
        half_interval: half of the 95% interval of each `worse_by`; None if it is unknown.
        simple_defaults: the hyperparameters that have their defaults in winner.simple.yaml; None
            without that file.
        simple_worse_by: how much worse that configuration is on the seeds of the re-evaluation.
    """

    rows: tuple[AblationRow, ...]
    half_interval: float | None = None
    simple_defaults: tuple[str, ...] | None = None
    simple_worse_by: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The findings on the test set, which the study stores.

    Attributes:
        untested: why the objective cannot be tested, in its words; None if it gives no reason.
        tested_by_function_only: whether only the user's function measured the winner, without a
            network of it.
        confusion: counts by true class (rows) and predicted class (columns).
    """

    test: Scores | None = None
    data: DataFacts | None = None
    seeds: tuple[int, ...] = ()
    untested: str | None = None
    tested_by_function_only: bool = False
    epochs: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None
    classes: tuple[str, ...] | None = None
    wrong: tuple[Wrong, ...] | None = None
    predictions: Predictions | None = None
    explanations: Explanations | None = None


@dataclass(frozen=True, kw_only=True)
class Result(Tested):
    """The content of winner.json.

    Attributes:
        comparison: of the best candidate with the baseline; None if that is the baseline itself, or
            if nothing is compared.
        ablation: None if it was not requested.
        trials: how many trials the winner was chosen from; `study_trials` is the study's total.
        reused_trainings: for each stage, how many of its trainings came from earlier results, and
            how many it has.
        satisfies_rule: whether the winner satisfies the rule on new seeds.
        files: the SHA-256 of the files that were written with it.
    """

    study: str
    stage: str
    trials: int
    winner: Candidate
    candidates: tuple[Candidate, ...]
    metric: ObjectiveValue
    rule: str
    study_trials: int | None = None
    reused_trainings: dict[str, tuple[int, int]] = field(default_factory=dict)
    written_at: str = ""
    satisfies_rule: bool = True
    comparison: Comparison | None = None
    ablation: Ablation | None = None
    command: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, run_dir: Path) -> "Result":
        """Reads winner.json below a run directory.

        Raises:
            PredictError: the file is missing or malformed.
        """
        path = run_dir / "winner.json"
        try:
            text = read_text(path, trusted=is_trusted(run_dir))
            return from_document(json.loads(text), cls)
        except FileNotFoundError:
            raise PredictError(
                f"{run_dir}: there is no winner.json; the study writes it when its search has ended"
            ) from None
        except (ValueError, RecursionError) as error:
            raise PredictError(
                f"{path}: cannot be used: {one_line(str(error))}; another version of studyloom has "
                "written it, or it is damaged; to write it again: studyloom winner "
                f"{shlex.quote(str(run_dir))}"
            ) from None

    @classmethod
    def read(cls, run_dir: Path, stored: StoredStudy | None = None) -> "Result | None":
        """Reads the result below a run directory; None if it is missing or incomplete.

        Args:
            stored: the study that the result must belong to; None for any.
        """
        try:
            result = cls.load(run_dir)
            mismatched = result.find_mismatched_files(run_dir)
        except (OSError, PredictError):
            return None
        if mismatched:
            return None
        if stored is not None and not result.belongs_to(stored):
            return None
        return result

    def write(self, run_dir: Path, files: Mapping[str, bytes]) -> "Result":
        """Writes winner.json, and then the files that belong to it.

        winner.json comes first and holds the digests of the others: if the command is killed before
        the last one is written, files of an earlier result are not taken for files of this one.

        Args:
            files: the content of each file, by its name.

        Returns:
            The result with the digests.
        """
        digests = {name: digest_of(content) for name, content in files.items()}
        result = replace(self, files=digests)
        write_json(run_dir / "winner.json", result)
        for name, content in files.items():
            write_whole(run_dir / name, content, durable=True)
        return result

    def find_mismatched_files(self, run_dir: Path, *names: str) -> list[str]:
        """Returns the files that are missing or were not written with this winner.json.

        Args:
            names: the names of the files to check; none for all that were written with it.

        Raises:
            OSError: a file cannot be read.
        """
        if names:
            checked_names = names
        else:
            checked_names = tuple(name for name in RESULT_FILES if name in self.files)
        mismatched = []
        for name in checked_names:
            path = run_dir / name
            # Reading a FIFO would wait for a program that writes to it.
            is_whole = path.is_file() and digest_of(path.read_bytes()) == self.files.get(name)
            if not is_whole:
                mismatched.append(name)
        return mismatched

    def check_whole(self, run_dir: Path, *names: str) -> None:
        """Raises PredictError if some of these files were not written with this winner.json."""
        mismatched = self.find_mismatched_files(run_dir, *names)
        if mismatched:
            remedy = f"run the study again, or studyloom winner {shlex.quote(str(run_dir))}"
            raise PredictError(
                f"{run_dir}: the result is incomplete: {' and '.join(mismatched)} did not come "
                f"with winner.json; {remedy}"
            )

    def belongs_to(self, stored: StoredStudy) -> bool:
        """Returns whether the winner was chosen from the trials that a study's database holds now.

        A study of the same name in another database, or with another seed, has trials with the
        same numbers but other hyperparameters and values.
        """
        if self.study != stored.name:
            return False
        trials = {trial.number: trial for trial in stored.trials()}
        for candidate in self.candidates:
            trial = trials.get(candidate.trial)
            if trial is None or not trial.values:
                return False
            if (trial.params, trial.values[0]) != (candidate.params, candidate.search_value):
                return False
        return True

    def read_network(self, run_dir: Path) -> Any:
        """Reads `objective.network` of winner.yaml; None if it has no such key."""
        from studyloom.config.trust import read_yaml  # here: no view of a result waits for it
        from studyloom.config.values import value_at

        return value_at(read_yaml(run_dir / "winner.yaml", trusted=True), "objective.network")

    @property
    def is_of_loop(self) -> bool:
        """Returns whether the winner is of a custom training loop, whose epochs are unknown."""
        return self.epochs is None

    def document(self) -> dict[str, Any]:
        """Returns winner.json."""
        document: dict[str, Any] = json.loads(json.dumps(to_document(self)))
        return document

    def values_after_search(self, metric: str) -> dict[str, Summary]:
        """Returns the winner's values in the re-evaluation and in the test, by these two names.

        Args:
            metric: the metric of the values with which they are compared; if the result has another
                metric, no values are returned.
        """
        values_by_stage: dict[str, Summary] = {}
        if metric != self.metric.name:
            return values_by_stage
        if self.winner.reevaluation is not None:
            values_by_stage["re-evaluation"] = self.winner.reevaluation
        if self.test is not None:
            values_by_stage["test"] = self.test.winner
        return values_by_stage

    def baseline_values_after_search(self, metric: str) -> dict[str, Summary]:
        """Returns the baseline's values, as `values_after_search`; none if the baseline has won."""
        values_by_stage: dict[str, Summary] = {}
        if metric != self.metric.name or self.winner.baseline:
            return values_by_stage
        for candidate in self.candidates:
            if candidate.baseline and candidate.reevaluation is not None:
                values_by_stage["re-evaluation"] = candidate.reevaluation
        if self.test is not None and self.test.baseline is not None:
            values_by_stage["test"] = self.test.baseline
        return values_by_stage

    def in_short(self) -> "ShortResult":
        """Returns the summary that the database stores, for views without a run directory."""
        winner = self.winner
        test = None
        baseline_test = None
        examples = None
        if self.test is not None:
            test = _find_spread(self.test.winner)
            examples = self.test.examples
            if self.test.baseline is not None:
                baseline_test = self.test.baseline.mean
        return {
            "stage": self.stage,
            "metric": self.metric.name,
            "trial": winner.trial,
            "params": winner.params,
            "search_value": winner.search_value,
            "reevaluation": _find_spread(winner.reevaluation),
            "test": test,
            "baseline_test": baseline_test,
            "examples": examples,
        }


class Spread(TypedDict):
    """The mean over seeds, and the standard deviation; None if it is unknown."""

    mean: float
    std: float | None


def _find_spread(values: Summary | None) -> Spread | None:
    """Returns the mean and standard deviation of values; no deviation if all are the same."""
    if values is None:
        return None
    if values.is_same_for_all_seeds:
        return {"mean": values.mean, "std": None}
    return {"mean": values.mean, "std": values.std}


class ShortResult(TypedDict):
    """The winner: its value in the search, on new seeds if re-evaluated, and on the test set if
    tested.
    """

    stage: str  # the stored study of the last stage
    metric: str
    trial: int
    params: dict[str, Any]
    search_value: float
    reevaluation: Spread | None
    test: Spread | None
    baseline_test: float | None
    examples: int | None


def to_document(value: Any) -> Any:
    """Converts a value of this module's types to JSON values."""
    import msgspec  # here: no search waits for it

    return msgspec.to_builtins(value)


def from_document(document: Any, kind: type[T]) -> T:
    """Reads a value of one of this module's types from JSON values.

    Raises:
        ValueError: the document is something else.
    """
    import msgspec

    return msgspec.convert(document, kind)


def write_json(path: Path, value: Any) -> None:
    """Writes a value of this module's types to a file."""
    write_whole(path, json.dumps(to_document(value), indent=1), durable=True)


def digest_of(content: bytes) -> str:
    """Returns the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def move_aside(run_dir: Path) -> Path | None:
    """Moves the result of a run directory to a new folder below `earlier/`.

    Returns:
        The new folder; None if there is no result.

    Raises:
        OSError: the files cannot be moved.
    """
    # winner.json, the first one, is moved first: without it, the other files are not a result.
    possible_paths = [run_dir / name for name in RESULT_FILES]
    possible_paths.append(run_dir / "winner")  # the folder of the networks
    possible_paths += sorted(run_dir.glob("winner.*"))  # of other commands too, such as `compress`
    unique_paths = list(dict.fromkeys(possible_paths))
    paths = [path for path in unique_paths if path.exists()]
    if not paths:
        return None
    folder = _make_new_folder(run_dir / "earlier")
    for path in paths:
        path.rename(folder / path.name)
    return folder


def _make_new_folder(parent: Path) -> Path:
    """Makes the first of the folders result-1, result-2, … that does not exist yet."""
    for number in itertools.count(1):
        folder = parent / f"result-{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # the numbers do not end
