"""The JSON that commands write for programs: the fields of each document.

The fields of large documents are defined where the documents are made, those of small ones here.
The reference "Events and JSON" is generated from them, and tests check the commands against them.
Hyperparameters are named by their path, such as optimizer.lr. Times are in seconds; `at` is in UTC.
"""

from typing import Any, Literal, NotRequired, TypedDict

from studyloom.commands import outputs
from studyloom.views import comparison, events, status
from studyloom.winner import result
from studyloom.worker.stopping import Request


class New(TypedDict):
    """The files of a new study with their purposes, and the command that runs it."""

    files: dict[str, str]
    next: str


TrialState = Literal["complete", "pruned", "failed", "paused", "running", "waiting"]


class TrialRow(TypedDict):
    """A trial; also has keys params.NAME, and with several objectives values.NAME for value."""

    number: int
    state: TrialState
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

    `control_before` and `control` are the request before and after the command, `was_running` is
    whether a worker held a trial, and `workers` lists the workers that still hold one.
    """

    study: str
    control_before: Request | None
    control: Request | None
    was_running: bool
    workers: list[str]


class StoppedTrial(TypedDict):
    """The result of `studyloom stop --trial`: the state in which the trial ended.

    If its worker has not ended it after some minutes, the state is still `running`.
    """

    study: str
    trial: int
    state: TrialState


class Redone(TypedDict):
    """The numbers of the failed trials whose slots are open again."""

    study: str
    trials: list[int]


class ProposalContext(TypedDict):
    """The information that a proposer needs.

    `space` is a JSON Schema, and `trials_left` counts the trials that have not begun. `end_reason`
    says why the study takes no more proposals, and `best_region` has the range of each
    hyperparameter in the best tenth of the trials. Each trial has `params` and a `curve` of values
    by epoch.
    """

    study: str
    definition: dict[str, Any]
    space: dict[str, Any]
    budget: int
    trials_left: int
    proposals_left: int
    end_reason: str | None
    best_region: dict[str, Any] | None
    trials: list[dict[str, Any]]


class Proposed(TypedDict):
    """The number of the waiting trial with the proposed configuration."""

    study: str
    trial: int


class WrittenReport(TypedDict):
    """The path of the report that was written."""

    report: str


class Adopted(TypedDict):
    """The findings on a study of another program, in short and by title, and what continues it."""

    study: str
    headline: str
    findings: dict[str, str]
    next: list[str]
    page: str


class EvaluatedWinner(TypedDict):
    """The winner, chosen and tested again."""

    study: str
    run_dir: str
    result: result.ShortResult | None


class Variants(TypedDict):
    """The document winner.onnx.json: the variants, what each costs, and the chosen one."""


class Predicted(TypedDict):
    """The predictions of the winner, and a line for each file without an input."""

    predictions: list[result.InputPrediction]
    errors: list[str]


class Replayed(TypedDict):
    """The comparison of a trial that was trained again: equal, bit for bit or within tolerance."""

    study: str
    trial: int
    equal: bool
    exit_code: int


class Check(TypedDict):
    """A check of `studyloom doctor`, and its outcome in `message`."""

    name: str
    state: Literal["ok", "warning", "to do", "failed", "not possible here"]
    seconds: NotRequired[float]
    message: str


class Doctor(TypedDict):
    """The checks; or with --repair how ledger and trials differed, and whether it was fixed."""

    checks: list[Check]
    differences: list[str]
    repaired: bool | None
    exit_code: int


class Dashboard(TypedDict):
    """The address of the dashboard, printed when it begins; `study` is null for several studies."""

    study: str | None
    url: str


class Key(TypedDict):
    """A key of a config, with its default as typed; "" if a study must set it."""

    key: str
    default: str
    meaning: str


class Completion(TypedDict):
    """A script for a shell."""

    shell: str
    script: str


class Errors(TypedDict):
    """The errors that a command with --json prints if it fails."""

    errors: list[str]
    exit_code: int


class Notice(TypedDict):
    """The document that a command given by notify=… reads on its standard input."""

    study: str
    subject: str
    body: str


DOCUMENTS: dict[str, Any] = {
    "new": New,
    "run": outputs.RunDocument,
    "status": status.StatusDocument,
    "trials": list[TrialRow],
    **dict.fromkeys(("stop", "pause", "resume"), Control),
    "stop_trial": StoppedTrial,
    "redo": Redone,
    "ask": ProposalContext,
    "propose": Proposed,
    "report": WrittenReport,
    "compare": comparison.Comparison,
    "adopt": Adopted,
    "winner": EvaluatedWinner,
    "ablate": result.Ablation,
    "compress": Variants,
    "predict": Predicted,
    "replay": Replayed,
    "doctor": Doctor,
    "dashboard": Dashboard,
    "keys": list[Key],
    "completion": Completion,
    "errors": Errors,
    "event": events.Event,
    "notice": Notice,
}
