"""The JSON that commands write for programs: the shape of each document, and its JSON Schema.

Commands make the documents, and tests hold them to their shape.
Parameters are named by their path, such as optimizer.lr. Times are in seconds, `at` in UTC.
"""

from typing import Any, Literal, NotRequired, TypedDict

# re-evaluation judges the best trials on fresh seeds, retraining trains winner and baseline on all
# data.
StageName = Literal["search", "re-evaluation", "retraining", "test", "compress", "done"]
Wish = Literal["stop", "pause"] | None  # what another terminal has asked for
Params = dict[str, Any]


class New(TypedDict):
    """The files of a new study, with what each is for, and the command that runs it."""

    files: dict[str, str]
    next: str


class Spread(TypedDict):
    """The mean over seeds, and the standard deviation."""

    mean: float
    std: float | None


class Compressed(TypedDict):
    """The winner made small, as winner.onnx; its value, and the winner's, on the test part."""

    name: str
    bytes: int
    bytes_of_winner: int
    value: float
    original: float
    difference: float
    within: bool  # whether the 95 % interval of the difference keeps to the margin
    interval: list[float]


class Result(TypedDict):
    """The winner: its value in the search, on fresh seeds if others competed, and on the test part
    if something was tested.
    """

    stage: str  # the stored study of the last stage
    metric: str
    trial: int
    params: Params
    search_value: float
    fresh: Spread | None
    test: Spread | None
    baseline_test: float | None
    examples: int | None
    compressed: NotRequired[Compressed]


class Best(TypedDict):
    """The best trial of a search."""

    trial: int
    value: float | None
    params: Params
    proposed_by: NotRequired[str | None]


class Run(TypedDict):
    """The document that `studyloom run FILE --json`, or a study with --json, prints at its end.

    `reason` says why the exit code is not 0; done and budget count the trials of all stages.
    """

    exit_code: int
    reason: NotRequired[str | None]
    study: NotRequired[str | None]
    run_dir: NotRequired[str | None]
    stage: NotRequired[StageName | None]
    done: NotRequired[int | None]
    budget: NotRequired[int | None]
    best: NotRequired[Best | None]
    answer: NotRequired[Result | None]


class Heart(TypedDict):
    """The document heartbeat.json in the run directory; the exit code comes with the end.

    `find runs/mnist/heartbeat.json -mmin +2` finds one whose command is gone or hangs.
    """

    at: str
    host: str
    pid: int
    study: str
    stage: StageName
    done: int
    budget: int
    control: Wish
    eta: float | None
    exit_code: int | None


class Slots(TypedDict):
    """The slots of the ledger by state."""

    free: int
    held: int
    done: int


class Outcomes(TypedDict):
    """The trials of the search by state."""

    complete: int
    pruned: int
    failed: int
    paused: int
    running: int
    waiting: int


class WorkerState(TypedDict):
    """A worker of the present stage: the last epoch of its trial, and how many that has.

    It has held its slot for some seconds, and its lease ends in some.
    """

    owner: str
    trial: int | None
    epoch: int | None
    epochs: int | None
    value: float | None
    params: Params
    held: float | None
    lease: float | None


class Failures(TypedDict):
    """How many trials have failed for a kind of reason, and the first of these."""

    count: int
    reason: str


class StageState(TypedDict):
    """How many trials of a stage have ended, and how many are left, at most before it begins."""

    stage: StageName
    done: int
    left: int


class Hours(TypedDict):
    """The hours that all stages have spent."""

    cores: float
    gpus: float


class Status(TypedDict):
    """The status of a study, by `studyloom status --json`; with --watch one a line.

    `best` is by the rule of the study, `front` the Pareto front, `ended` why the search ended
    before its budget was spent, `gain` what the trials that are left are expected to gain. `eta` is
    of the whole job; foreign trials are those of other programs.
    """

    study: str
    metric: str
    budget: int
    done: int
    slots: Slots
    trials: Outcomes
    best: Best | None
    baseline: Best | None
    front: list[Best]
    rule: str | None
    importances: dict[str, float | None]
    workers: list[WorkerState]
    failures: dict[str, Failures]
    halted: str | None
    eta: float | None
    foreign: int
    ended: str | None
    gain: float | None
    stage: StageName
    stages: list[StageState]
    elapsed: float | None
    hours: Hours
    cost: float | None
    control: Wish
    answer: Result | None
    exit_code: int | None


class Trial(TypedDict):
    """A trial; there are keys params.NAME too, and with several values values.NAME for value."""

    number: int
    state: Literal["complete", "pruned", "failed", "paused", "running", "waiting"]
    value: NotRequired[float | None]
    standard_error: NotRequired[float | None]
    started: str | None
    seconds: float | None
    epochs: int
    worker: str | None
    baseline: bool
    proposed_by: str | None
    failure: str | None
    reason: str | None


class Control(TypedDict):
    """The result of `studyloom stop`, `pause` and `resume`.

    `worked_on` is whether anybody held a trial, and `workers` are those who still hold one.
    """

    study: str
    before: Wish
    control: Wish
    worked_on: bool
    workers: list[str]


class PythonStudy(TypedDict):
    """What a proposer needs: `question` (metric, direction, rule, baseline, about), `space` (a JSON
    Schema), `budget`, `left` (slots without a trial), `proposals_left`, `ended` (why it takes no
    more proposals, or null) and `trials`.
    """


class Proposed(TypedDict):
    """The number of the trial that waits with a proposed point."""

    study: str
    trial: int


class Report(TypedDict):
    """The path of the report that was written."""

    report: str


class Compared(TypedDict):
    """A study: its best value, its winner on the test part, and what both cost.

    The difference is that of winner and baseline; `seconds` from the first start to the last end.
    """

    name: str
    run_dir: str
    metric: str
    best: float | None
    test: float | None
    std: float | None
    difference: float | None
    trials: int
    of: int
    pruned: int
    failed: int
    epochs: int
    seconds: float | None
    worker_seconds: float | None


class Comparison(TypedDict):
    """Studies side by side, and for each key that differs its values in their order."""

    studies: list[Compared]
    differs: dict[str, list[Any]]


class Winner(TypedDict):
    """The winner, chosen and tested again."""

    study: str
    run_dir: str
    answer: Result | None


class Variants(TypedDict):
    """The document compress.json: the variants, what each costs, and the chosen one."""


class Prediction(TypedDict):
    """The class of one input, with its name and probability, or numbers.

    The note says what was done to the input, and in what it is unlike the training data.
    """

    name: str
    label: int | None
    confidence: float | None
    values: list[float]
    word: str
    note: str


class Predicted(TypedDict):
    """The predictions of the winner, and a line for each file that holds no input."""

    answers: list[Prediction]
    errors: list[str]


class Replayed(TypedDict):
    """Whether a trial that was trained again is equal, bit for bit or within tolerance."""

    study: str
    trial: int
    equal: bool
    exit_code: int


class Check(TypedDict):
    name: str
    state: Literal["ok", "warning", "to do", "failed", "not possible here"]
    seconds: NotRequired[float]
    words: str


class Doctor(TypedDict):
    """The checks; or with --repair how ledger and trials differed, and whether it was mended."""

    checks: list[Check]
    differences: list[str]
    mended: bool | None
    exit_code: int


class Dashboard(TypedDict):
    """The address of the dashboard, printed when it begins."""

    study: str
    url: str


class Key(TypedDict):
    """A key of a config, with its default as it is typed; "" if a study must set it."""

    key: str
    default: str
    meaning: str


class Completion(TypedDict):
    """A script for a shell."""

    shell: str
    script: str


class Errors(TypedDict):
    """The mistakes that a command with --json prints if it cannot do its work."""

    errors: list[str]
    exit_code: int


class Event(TypedDict):
    """The fields of each line of --events FILE; `id` tells studies of one name apart.

    A trial has begun, has reported an epoch, goes on after the death of its worker, has ended, or
    is the best now; another terminal has asked to stop, to pause, or to go on; the study has
    stopped itself; the winner is known; the command ends.
    """

    event: Literal[
        "began", "reported", "resumed", "ended", "best", "control", "halted", "answer", "exit"
    ]
    at: str
    study: str
    id: str | None
    stage: NotRequired[Literal["search", "re-evaluation", "retraining"]]
    trial: NotRequired[int]
    params: NotRequired[Params]
    worker: NotRequired[str | None]
    epoch: NotRequired[int | None]
    deaths: NotRequired[int]
    epochs: NotRequired[int | None]
    state: NotRequired[Literal["complete", "pruned", "failed"]]
    value: NotRequired[float | None]
    values: NotRequired[list[float | None] | None]
    seconds: NotRequired[float | None]
    wish: NotRequired[Wish]
    reason: NotRequired[str | None]
    answer: NotRequired[Result]
    code: NotRequired[int]


class Notice(TypedDict):
    """The document that a command of notify=… gets on its standard input."""

    study: str
    subject: str
    body: str


DOCUMENTS: dict[str, Any] = {
    "new": New,
    "run": Run,
    "status": Status,
    "trials": list[Trial],
    **dict.fromkeys(("stop", "pause", "resume"), Control),
    "ask": PythonStudy,
    "propose": Proposed,
    "report": Report,
    "compare": Comparison,
    "winner": Winner,
    "compress": Variants,
    "predict": Predicted,
    "replay": Replayed,
    "doctor": Doctor,
    "dashboard": Dashboard,
    "keys": list[Key],
    "completion": Completion,
    "schema": dict[str, Any],
    "errors": Errors,
    "event": Event,
    "heartbeat": Heart,
    "notice": Notice,
}


def json_schema(name: str) -> dict[str, Any]:
    """Returns the JSON Schema of a document."""
    import msgspec

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | msgspec.json.schema(DOCUMENTS[name])
