"""The JSON that commands write for programs: the shape of each document, and its JSON Schema.

The shapes of large documents are defined where the documents are made, those of small ones here;
tests check the commands against them.
Hyperparameters are named by their path, such as optimizer.lr. Times are in seconds, `at` in UTC.
"""

from typing import Any, Literal, NotRequired, TypedDict

from studyloom.commands import outputs
from studyloom.study.stopping import Request
from studyloom.views import comparison, progress
from studyloom.winner import result


class New(TypedDict):
    """The files of a new study with their purposes, and the command that runs it."""

    files: dict[str, str]
    next: str


class TrialRow(TypedDict):
    """A trial; also has keys params.NAME, and with several objectives values.NAME for value."""

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

    `worked_on` is whether a worker held a trial, and `workers` lists those that still hold one.
    """

    study: str
    before: Request | None
    control: Request | None
    worked_on: bool
    workers: list[str]


class Redone(TypedDict):
    """The numbers of the failed trials whose slots are open again."""

    study: str
    trials: list[int]


class ProposalContext(TypedDict):
    """What a proposer needs: `definition` (of the study: metric, direction, rule, baseline,
    about), `space` (a JSON Schema), `budget`, `left` (trials not begun), `proposals_left`, `ended`
    (why it takes no more proposals, or null), `best_region` (of each hyperparameter in the best
    tenth of the trials, or null) and `trials`, each with `params` and a `curve` of values by epoch.
    """


class Proposed(TypedDict):
    """The number of the waiting trial with the proposed configuration."""

    study: str
    trial: int


class WrittenReport(TypedDict):
    """The path of the report that was written."""

    report: str


class Adopted(TypedDict):
    """What a study of another program shows, by title, and the commands that continue it."""

    study: str
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
    """Whether a trial that was trained again has the same result, bit for bit or in tolerance."""

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
    """The checks; or with --repair how ledger and trials differed, and whether it was fixed."""

    checks: list[Check]
    differences: list[str]
    mended: bool | None
    exit_code: int


class Dashboard(TypedDict):
    """The address of the dashboard, printed when it begins."""

    study: str
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
    "status": progress.StatusDocument,
    "trials": list[TrialRow],
    **dict.fromkeys(("stop", "pause", "resume"), Control),
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
    "schema": dict[str, Any],
    "errors": Errors,
    "event": progress.Event,
    "heartbeat": outputs.HeartbeatDocument,
    "notice": Notice,
}


def json_schema(name: str) -> dict[str, Any]:
    """Returns the JSON Schema of a document."""
    import msgspec

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = msgspec.json.schema(DOCUMENTS[name])
    for shape in schema.get("$defs", {}).values():
        for field, about in shape.get("properties", {}).items():
            if "default" in about:  # a field of a dataclass, which is always written
                del about["default"]
                shape["required"].append(field)
    return dialect | schema
