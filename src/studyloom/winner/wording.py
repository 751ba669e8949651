"""An answer in words, as terminal, report, model card and comparison say it; and the model card."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studyloom.text import (
    code_in_markdown,
    format_cost,
    format_error,
    format_parameter,
    format_shape,
    format_value,
    in_markdown,
    printable,
)
from studyloom.winner.result import Candidate, Compressed, DataFacts, Result, Scores, Summary

if TYPE_CHECKING:
    from studyloom.data.training_data import Part

SMALL_HEADING = "## Made small"
CHOSEN = "chosen"  # what the row of the chosen variant has in its last column
SEED = (
    "if the training sets a seed of its own, have it take the trial's: run.seed in a loop, {seed} "
    "in a command, objective.seed of a Hydra application"
)
NO_INTERVAL = "no interval: it takes three seeds that differ"
STAGES = {"re-evaluation": "re-evaluations", "retraining": "final trainings"}


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_mean(values: Summary) -> str:
    """Formats mean ± standard deviation; of two values, the mean and both."""
    mean = format_value(values.mean)
    if values.same or len(values.values) < 2:
        return mean
    if values.std is None:
        return f"{mean} ({' and '.join(map(format_value, values.values))})"
    return f"{mean} ± {format_error(values.std, mean)}"


def format_seeds(values: Summary) -> str:
    """Formats what `±` is beside a mean of `format_mean`, or why there is none; empty for one."""
    seeds = len(values.values)
    if values.same:
        return f"the same value with each of {seeds} seeds, so that no spread is known"
    return f"± is the standard deviation over {seeds} seeds" if values.std is not None else ""


def seed_notes(answer: Result) -> list[str]:
    """Returns what to do about a training of the user's own that follows no seed."""
    values = answer.winner.fresh if answer.test is None else answer.test.winner
    return [SEED] if answer.is_of_loop and values is not None and values.same else []


def format_costs(row: Candidate) -> str:
    """Formats the costs of a candidate, each after a comma; empty if the metric was all."""
    return "".join(f", {name} {format_cost(value)}" for name, value in row.costs.items())


def format_choice(answer: Result, budget: int | None = None) -> str:
    """Formats which trials a winner was chosen from: all of the study, or its first ones."""
    of = budget or answer.study_trials or answer.trials
    first = f"the first {answer.trials} of {of}" if answer.trials < of else answer.trials
    return f"chosen from {first} trials"


def format_reuse(answer: Result) -> str:
    """Formats how many trainings earlier answers, or the judging, had done; empty if none."""
    reused = [
        f"{count} of {of} {STAGES.get(title, title)}"
        for title, (count, of) in answer.reused.items()
        if count
    ]
    return f"reused, as trained before: {', '.join(reused)}" if reused else ""


def format_difference(difference: Summary, covers: str = "") -> str:
    """Formats a difference with its interval, and whether that includes 0."""
    mean = format_value(difference.mean, "+")
    if difference.interval is None:
        return f"{mean}, {NO_INTERVAL}" if len(difference.values) > 1 else mean
    low, high = difference.interval
    interval = f"{mean}, 95 % interval {format_value(low, '+')} to {format_value(high, '+')}"
    interval += f" {covers}" if covers else ""
    return f"{interval}: no difference shown" if low <= 0 <= high else interval


def format_covers(test: Scores) -> str:
    """Formats what the intervals of a test cover."""
    covers, seeds = test.interval.covers, len(test.winner.values)
    if covers == "examples" and seeds > 1:  # each of which may lie outside
        return f"over examples, for the mean of these {seeds} seeds only"
    return "over seeds only" if covers == "seeds" else f"over {covers}"


def format_fresh(test: Scores) -> str:
    """Formats what the re-evaluation has anew; no splits of data that a loop loads itself."""
    return f"on fresh seeds{'' if test.examples is None else ' and validation parts'}"


def format_sizes(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {format_parameter(size)}" for key, size in sizes.items())


def transfer_lines(answer: Result) -> Iterator[str]:
    """Yields how far the trials of the search told what is good at the size of the winner."""
    if (found := answer.transfer) is None:
        return
    rule = "" if found.rule == "none" else f" by the rule {found.rule}"
    small, target = format_sizes(found.small), format_sizes(found.target)
    yield f"searched with {small}, and carried to {target}{rule}"
    fresh = plural(len(answer.winner.values), "fresh seed")
    promised, reached = format_value(found.promised), format_value(found.reached)
    yield f"transfer gap: {promised} in the search, {reached} at the target on {fresh}"
    if found.order is not None:
        between = ""
        if found.interval is not None:
            low, high = (format_value(end, "+") for end in found.interval)
            between = f", 95 % interval {low} to {high}"
        order = format_value(found.order, "+")
        yield f"order of {found.candidates} candidates: rank correlation {order}{between}"
    if found.neighbour:
        yield f"the best at the target is {answer.winner.name}"
    if found.share is not None:
        yield f"{100 * found.share:.0f} % of the operations of the same search at the target"


def transfer_sentence(answer: Result) -> str:
    """Words `transfer_lines` as one sentence; empty without one."""
    words = "; ".join(transfer_lines(answer))
    return f"{words[0].upper()}{words[1:]}." if words else ""


def format_uncertainty(test: Scores) -> list[str]:
    """Formats what `±` is beside the winner's mean on the test part, and the interval of that."""
    notes = [format_seeds(test.winner)]
    if test.winner.interval:
        low, high = (format_value(value) for value in test.winner.interval)
        notes.append(f"95 % interval of the winner's mean {low} to {high} {format_covers(test)}")
    return [note for note in notes if note]


def format_openings(openings: int) -> str:
    return "opened once" if openings == 1 else f"opened {openings} times"


def format_tested(test: Scores) -> str:
    """Formats how often the test part was opened, and when."""
    when = "after the winner was chosen"
    if test.earlier:
        when = "for these networks when an earlier answer had the same winner"
    return f"{format_openings(test.openings)}, {when}"


def accepted_files(data: DataFacts) -> str:
    """Describes the files that `studyloom predict` takes."""
    shape, transform = data.shape, data.transform or {}
    if data.reads:
        return f"files that {transform['_target_']} reads"
    if shape is None or not data.fits_files:
        return "no files, since its inputs are not one tensor of numbers"
    sizes = format_shape(shape)
    arrays = f".npy files of {sizes} numbers, or of several such"
    if len(shape) == 3 and shape[0] in (1, 3):  # channels, height and width of a picture
        background = transform.get("background")
        inverted = f", those without a {background} background inverted" if background else ""
        return (
            f"pictures of any size, made {sizes} (channels, height, width){inverted}, and {arrays}"
        )
    if data.columns:
        return f"CSV files with the columns {', '.join(data.columns)}, and {arrays}"
    return f"CSV files with {math.prod(shape)} numbers in a line, and {arrays}"


def model_card(
    answer: Result, run_dir: Path, data: "Part | None", sources: Mapping[str, str]
) -> str:
    """Writes the model card of a tested winner in Markdown.

    Args:
        data: the training part; None if a loop has its own.
        sources: of what a notebook or script has defined, by name.
    """
    winner, test = answer.winner, answer.test
    assert test is not None
    on = f", on {test.examples} examples" if test.examples else ""
    spread = "".join(f"; {note}" for note in format_uncertainty(test))
    lines = [
        f"# {in_markdown(answer.study)}: trial {winner.trial}",
        f"Test {in_markdown(answer.metric.name)} {format_mean(test.winner)} over "
        f"{len(answer.seeds)} seeds{on}{spread}.",
    ]
    if test.baseline and test.difference:
        difference = format_difference(test.difference, format_covers(test))
        lines.append(
            f"The baseline has {format_mean(test.baseline)}; the difference is {difference}."
        )
    if winner.fresh and winner.gap is not None and answer.transfer is None:
        lines.append(
            f"{format_choice(answer).capitalize()}. Its value in the search was "
            f"{format_value(winner.search_value)}, and {format_fresh(test)} "
            f"{format_mean(winner.fresh)}. The selection gap is {format_value(winner.gap, '+')}; "
            "above 0 the search had flattered it."
        )
    if carried := transfer_sentence(answer):
        lines.append(in_markdown(carried))
    if winner.costs:
        costs = in_markdown(format_costs(winner))
        lines.append(f"Chosen by {code_in_markdown(answer.rule)}{costs}.")
    if reused := format_reuse(answer):
        lines.append(f"{reused.capitalize()}.")
    params = [
        f"| {code_in_markdown(name)} | {code_in_markdown(str(value))} |"
        for name, value in winner.params.items()
    ]
    lines.append(
        "\n".join(["## Parameters\n\n| | |\n|---|---|", *(params or ["| as composed | |"])])
    )
    if answer.data is None:
        use = f"{code_in_markdown(f'studyloom.load_winner({str(run_dir)!r})')} loads it."
    else:
        command = code_in_markdown(f"studyloom predict {run_dir} FILE…")
        use = f"{command} takes {in_markdown(accepted_files(answer.data))}."
    kept = "what the loop kept" if answer.is_of_loop else "the weights"
    lines.append(
        f"## Use\n\n`winner.pt` holds {kept} of "
        "the first seed (`torch.load(…, weights_only=True)`), `winner.yaml` the configuration, "
        f"`winner.json` all numbers. {use}"
    )
    trained = ""
    if data is not None:
        epochs = "" if answer.is_of_loop else f", for {answer.epochs} epochs"
        trained = f"Trained on {len(data)} examples, sha256 `{data.digest}`{epochs}. "
    lines.append(f"## Data\n\n{trained}The test part was {format_tested(test)}.")
    for name, source in sources.items():
        code = printable(source).replace("\n", "\n    ")
        lines.append(f"## Code\n\n{code_in_markdown(name)} was\n\n    {code}")
    return "\n\n".join(lines) + "\n"


def compressed_rows(record: Compressed) -> Iterator[tuple[str, ...]]:
    """Yields the heads of the table of variants, and then a row for each."""
    heads = ("worse by", "bytes", "ms, batch 1", "ms, batch 64", "")
    yield "variant", record.metric.name, *heads
    for row in (record.original, *record.variants):
        if row.note is not None:
            yield row.name, *["–"] * 5, row.note
            continue
        low, high = (format_value(end, "+") for end in row.drop_interval)
        lost = "" if row is record.original else f"{low} to {high}"
        latencies = (row.latency[batch] for batch in ("1", "64"))
        times = [f"{each.median:.3g} ({each.low:.3g}–{each.high:.3g})" for each in latencies]
        mark = CHOSEN if row.name == record.chosen.name else ""
        yield row.name, format_value(row.value), lost, f"{row.bytes:_}", *times, mark


def compressed_lines(record: Compressed) -> list[str]:
    """Returns the lines about the chosen variant."""
    chosen, test = record.chosen, record.test
    faster = ", ".join(
        f"{theirs / ours:.2f} × as fast at batch {batch}"
        for batch, (ours, theirs) in chosen.medians.items()
    )
    low, high = (format_value(end, "+") for end in test.interval)
    interval = f", 95 % interval {low} to {high} over examples" if test.covers else ""
    verdict = "within" if test.within else "not shown to be within"
    return [
        f"chosen {chosen.name} by {record.rule}",
        f"{record.bytes_of_winner / chosen.bytes:.2f} × smaller: {chosen.bytes:_} bytes, "
        f"winner.pt has {record.bytes_of_winner:_}",
        f"{faster}, against PyTorch eager on {plural(record.threads, 'thread')}: medians",
        f"test {record.metric.name} {format_value(test.value)}, the original has "
        f"{format_value(test.original)}, on {test.examples} examples",
        f"difference {format_value(test.difference, '+')}{interval}: "
        f"{verdict} the margin of {format_value(record.margin)}",
        f"the test part was {format_openings(test.openings)} in this study"
        f"{', for this very file by an earlier command' if test.earlier else ''}",
    ]


def small_section(record: Compressed) -> str:
    """Returns the section of the model card on a winner that was made small."""
    heads, *rows = compressed_rows(record)
    table = [[in_markdown(cell) for cell in row] for row in (heads, *rows)]
    table.insert(1, ["---"] * len(heads))
    about = (
        "`winner.onnx` needs onnxruntime alone: its input is `inputs`, (n, …) as in training, its "
        "output `outputs`; how they were normalised is in its metadata, `studyloom`. All variants "
        "were judged on a validation part that neither they nor their original were trained on."
    )
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    listed = "\n".join(
        f"* {in_markdown(line[0].upper() + line[1:])}." for line in compressed_lines(record)
    )
    return "\n\n".join([SMALL_HEADING, about, listed, lines])
