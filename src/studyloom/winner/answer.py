"""The answer of a study: its files, written, read and moved aside, and its numbers in words."""

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from studyloom.errors import PredictError
from studyloom.files import digest_of_file, write_whole
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_cost, format_value, one_line

if TYPE_CHECKING:  # reading an answer, as `studyloom status` does, must not import torch
    from studyloom.winner.stages import Plan


COMMITTEE = "committee.pt"
MODULE = re.compile(r"\w[\w.-]*")

# Moved aside in this order: without winner.json the others are no answer.
ANSWER_FILES = (
    *("winner.json", "winner.yaml", "winner.pt", COMMITTEE, "model_card.md", "report.html"),
    *("compress.json", "winner.onnx"),
    "winner",  # the folder of the networks
)


def write_answer(
    run_dir: Path, answer: Mapping[str, Any], files: Mapping[str, bytes]
) -> dict[str, Any]:
    """Writes winner.json, and then the files that belong to it.

    It has their digests, and goes first: if the command is killed before the last of them is in its
    place, those of another answer are not taken for this one's.

    Args:
        run_dir: where the study runs.
        answer: what winner.json holds beside the digests.
        files: the content of the other files by name.

    Returns:
        what winner.json holds.

    Raises:
        OSError: a file cannot be written.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    written = {**answer, "files": digests}
    write_whole(run_dir / "winner.json", json.dumps(written, indent=1), durable=True)
    for name, content in files.items():
        write_whole(run_dir / name, content, durable=True)
    return written


def stated_page(answer: Mapping[str, Any]) -> list[str] | None:
    """Returns the command of the study's page that winner.json states; None if it states no such.

    It is shown to be typed again, and winner.json may be another person's: a module, a file, or
    `studyloom run` of one is all that a page can be.

    Args:
        answer: what winner.json holds.
    """
    match answer.get("command"):
        case ["python", "-m", str(module)] if MODULE.fullmatch(module):
            return ["python", "-m", module]
        case ["python", *before, str(path)] if before in ([], ["-m", "studyloom", "run"]):
            return None if path.startswith("-") or path != one_line(path) else [*answer["command"]]
    return None


def read_answer(run_dir: Path) -> dict[str, Any] | None:
    """Returns what winner.json holds; None if there is none, or none that is whole."""
    try:
        answer = json.loads((run_dir / "winner.json").read_bytes())
        if isinstance(answer, dict) and not strays(run_dir, answer):
            return answer
    except (OSError, ValueError, RecursionError):
        pass
    return None


def load_answer(run_dir: Path) -> Mapping[str, Any]:
    """Reads winner.json below a run directory.

    Raises:
        PredictError: there is none, or it is no JSON object.
        OSError: it cannot be read.
    """
    try:
        answer = json.loads((run_dir / "winner.json").read_bytes())
        if not isinstance(answer, dict):
            raise TypeError(f"it holds a {type(answer).__name__}")
    except FileNotFoundError as error:
        if not str(error.filename).endswith("winner.json"):
            raise
        wait = "the study writes it when its search has ended"
        raise PredictError(f"{run_dir}: there is no winner.json; {wait}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise unusable(run_dir, error) from None
    return answer


def unusable(run_dir: Path, error: Exception) -> PredictError:
    """Returns the error that says why winner.json cannot be used."""
    return PredictError(
        f"{run_dir / 'winner.json'}: cannot be used: {type(error).__name__}: {error}"
    )


def is_of_loop(answer: Mapping[str, Any]) -> bool:
    """Whether an answer is of a loop of the user's own, and not of a network of ours."""
    return "note" in answer and answer.get("data") is None


def strays(run_dir: Path, answer: Mapping[str, Any], *names: str) -> list[str]:
    """Finds files that are missing, or are not those which were written with winner.json.

    Args:
        run_dir: where the study runs.
        answer: what winner.json holds; without digests, as of an earlier version, no file is one.
        names: the files to look at; none for all of the answer.

    Raises:
        OSError: a file cannot be read.
    """
    digests = answer.get("files")
    if not isinstance(digests, Mapping):
        return []
    looked_at = names or [name for name in ANSWER_FILES if name in digests]
    return [name for name in looked_at if digests.get(name) != _digest(run_dir, name)]


def check_whole(run_dir: Path, answer: Mapping[str, Any], *names: str) -> None:
    """Raises PredictError if files are not those that were written with winner.json.

    Args:
        run_dir: where the study runs.
        answer: what winner.json holds.
        names: the files.
    """
    if stray := strays(run_dir, answer, *names):
        raise PredictError(
            f"{run_dir}: the answer is incomplete: {' and '.join(stray)} did not come with "
            "winner.json, since a command was killed while it wrote them; run the study's command "
            f"again, or studyloom winner {shlex.quote(str(run_dir))}"
        )


def _digest(run_dir: Path, name: str) -> str | None:
    """Returns the SHA-256 of a file; None if there is none."""
    try:
        return digest_of_file(run_dir / name)
    except FileNotFoundError:
        return None


def belongs_to(answer: Mapping[str, Any], stored: StoredStudy) -> bool:
    """Whether an answer was chosen from the trials of a study, as its database holds them now.

    A study of the same name in another database, or one with another seed, has other trials: their
    numbers are the same, but not their parameters and values.

    Args:
        answer: what winner.json holds.
        stored: the study of the search.
    """
    trials = {trial.number: trial for trial in stored.trials() if trial.values}
    rows = answer.get("candidates")
    if answer.get("study") != stored.name or not isinstance(rows, list) or not rows:
        return False
    return all(isinstance(row, dict) and _is_row_of(row, trials) for row in rows)


def _is_row_of(row: Mapping[str, Any], trials: Mapping[Any, FrozenTrial]) -> bool:
    trial = trials.get(row.get("trial"))
    if trial is None:
        return False
    return trial.params == row.get("params") and trial.values[0] == row.get("search_value")


def is_answer_of(answer: Mapping[str, Any], plan: "Plan") -> bool:
    """Whether an answer comes from the final stage of this very plan.

    The name of the stage has the budget and the rule; what was judged has the question and seeds.
    """
    if answer.get("stage") != plan.last.stored.name or not belongs_to(answer, plan.search.stored):
        return False
    if plan.settings.committee and "committee" not in answer:
        return False
    if answer.get("trials", plan.trials) != plan.trials:  # the search had ended, and went on since
        return False
    fresh = plan.fresh_values
    return all(row.get("values") == fresh.get(row["trial"]) for row in answer["candidates"])


def move_aside(run_dir: Path) -> Path | None:
    """Moves the answer of a run directory to a folder of its own below `earlier/`.

    Returns:
        the folder; None if there was nothing to move.

    Raises:
        OSError: the files cannot be moved.
    """
    files = [run_dir / name for name in ANSWER_FILES if (run_dir / name).exists()]
    if not files:
        return None
    earlier = run_dir / "earlier"
    numbers = itertools.count(1)
    folder = next(path for n in numbers if not (path := earlier / f"answer-{n}").exists())
    folder.mkdir(parents=True)
    for file in files:
        file.rename(folder / file.name)
    return folder


def format_costs(row: Mapping[str, Any]) -> str:
    """Formats the costs of a candidate, each after a comma; empty if the metric was all.

    Args:
        row: a candidate in winner.json.
    """
    return "".join(f", {name} {format_cost(value)}" for name, value in row.get("costs", {}).items())


def format_seeds(values: Mapping[str, Any]) -> str:
    """Formats what `±` is beside a mean of `format_mean`; empty for one seed.

    Args:
        values: what `summarise` returns, with its `values`.
    """
    seeds = len(values.get("values") or ())
    return f"± is the standard deviation over {seeds} seeds" if seeds > 1 else ""


def format_choice(answer: Mapping[str, Any], budget: int | None = None) -> str:
    """Formats which trials a winner was chosen from: all of the study, or its first ones.

    Args:
        answer: what winner.json holds.
        budget: of the study by now; None for that of when the winner was chosen.
    """
    trials = answer.get("trials")
    of = answer.get("study_trials", trials) if budget is None else budget
    if not isinstance(trials, int) or not isinstance(of, int) or trials >= of:
        return f"chosen from {trials} trials"
    return f"chosen from the first {trials} of {of} trials"


def format_reuse(answer: Mapping[str, Any]) -> str:
    """Formats how many trainings earlier answers had done; empty if none.

    Args:
        answer: what winner.json holds.
    """
    names = {"re-evaluation": "re-evaluations", "retraining": "final trainings"}
    reused = [
        f"{count} of {of} {names.get(title, title)}"
        for title, (count, of) in answer.get("reused", {}).items()
        if count
    ]
    return f"reused from earlier answers: {', '.join(reused)}" if reused else ""


def format_mean(values: Mapping[str, Any]) -> str:
    """Formats mean ± standard deviation.

    Args:
        values: what `summarise` returns.
    """
    return format_value(values["mean"]) + (
        "" if values["std"] is None else f" ± {format_value(values['std'])}"
    )


def format_difference(test: Mapping[str, Any]) -> str:
    """Formats the difference between winner and baseline, with its interval.

    Args:
        test: what `compare` returns, with a difference.
    """
    difference = test["difference"]
    mean = format_value(difference["mean"], "+")
    if difference["interval"] is None:
        return mean
    low, high = difference["interval"]
    interval = f"{mean}, 95 % interval {format_value(low, '+')} to {format_value(high, '+')}"
    if covers := format_covers(test):
        interval += f" {covers}"
    return f"{interval}: no difference shown" if low <= 0 <= high else interval


def format_covers(test: Any) -> str:
    """Formats what an interval of the test covers; empty for an answer of an earlier version.

    Args:
        test: the entry of winner.json.
    """
    interval = test.get("interval") if isinstance(test, Mapping) else None
    covers = interval.get("covers") if isinstance(interval, Mapping) else None
    if not isinstance(covers, str):
        return ""
    return "over seeds alone" if covers == "seeds" else f"over {covers}"


def format_uncertainty(test: Mapping[str, Any]) -> list[str]:
    """Formats what `±` is beside the winner's mean on the test part, and the interval of the mean.

    Args:
        test: what `compare` returns.
    """
    notes, interval = [format_seeds(test["winner"])], test["winner"].get("interval")
    if interval and (covers := format_covers(test)):
        low, high = (format_value(value) for value in interval)
        notes.append(f"95 % interval of the winner {low} to {high} {covers}")
    return [note for note in notes if note]


def format_race(answer: Mapping[str, Any]) -> list[str]:
    """Formats how the winner came out of a race, and who left it when and why; empty without one.

    Args:
        answer: what winner.json holds.
    """
    race = answer.get("race")
    if not isinstance(race, Mapping):
        return []
    lines = [
        f"race of {race['entrants']} candidates: {race['trainings']} of at most {race['budget']} "
        "trainings"
    ]
    looks: dict[tuple[int, str], list[int]] = {}
    for left in race["left"]:
        looks.setdefault((left["seeds"], left["reason"]), []).append(left["trial"])
    for (seeds, reason), numbers in looks.items():
        who = f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {_listed(numbers)}"
        lines.append(f"{who} left after {seeds} seed{'' if seeds == 1 else 's'}: {reason}")
    last = race["last"]
    if len(last) > 1:
        seeds = race["seeds"]
        lines.append(f"trials {_listed(last)} stayed to the end, on {seeds} seeds; the best won")
    return lines


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def committee_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is to be said of a committee; nothing if none was asked for.

    Args:
        answer: what winner.json holds.
    """
    entry = answer.get("committee")
    if entry is None:
        return
    if "note" in entry:
        yield entry["note"]
        return
    count = len(entry["members"])
    networks = f"{count} network{'' if count == 1 else 's'}"
    cost = "".join(f", {words}" for words in format_committee_costs(entry))
    yield f"{answer['metric']['name']} {format_value(entry['test'])}  {networks}{cost}"
    yield f"difference to the winner {format_difference(entry)}"
    value, single = (format_value(entry["validation"][name]) for name in ("value", "single"))
    yield f"on the validation parts, which chose it, {value}; the best single networks {single}"
    shares = {
        member["trial"]: [m for m in entry["members"] if m["trial"] == member["trial"]]
        for member in entry["members"]
    }
    yield "; ".join(
        f"trial {trial}: {len(own)} network{'' if len(own) == 1 else 's'}, chosen "
        f"{sum(m['times'] for m in own)} ×, weight {100 * sum(m['share'] for m in own):.0f} %"
        for trial, own in shares.items()
    )


def format_committee_costs(entry: Mapping[str, Any]) -> list[str]:
    """Formats what a committee costs, each beside what the winner does.

    Args:
        entry: of winner.json.
    """
    words = {"parameters": "parameters", "latency_ms": "ms for an input"}
    return [
        f"{format_cost(ours)} {words[name]} ({ours / theirs:.1f} × the winner's)"
        for name, (ours, theirs) in entry["costs"].items()
        if theirs
    ]


def format_openings(test: Any) -> str:
    """Formats how often the test part was opened; empty for an answer that did not count.

    Args:
        test: the entry of winner.json.
    """
    openings = test.get("openings") if isinstance(test, Mapping) else None
    if not isinstance(openings, int):
        return ""
    return "opened once" if openings == 1 else f"opened {openings} times"


def format_tested(test: Any) -> str:
    """Formats how often the test part was opened, and when.

    Args:
        test: the entry of winner.json.
    """
    opened = format_openings(test)
    if isinstance(test, Mapping) and test.get("earlier"):
        return f"{opened}, for these networks when an earlier answer had the same winner"
    return f"{opened}, after the winner was chosen"
