"""compress.json: what came of making a winner small, read back and put into words."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studyloom.extras.export.settings import COMMITTEE, Settings
from studyloom.files import digest_of_file, write_whole
from studyloom.text import format_value, in_markdown
from studyloom.winner.answer import COMMITTEE as COMMITTEE_FILE

RECORD, NETWORK, CARD = "compress.json", "winner.onnx", "model_card.md"
HEADING = "## Made small"
HEADS = ("worse by", "bytes", "ms, batch 1", "ms, batch 64", "")
CHOSEN = "chosen"  # what the row of the chosen variant has in its last column
Row = tuple[str, ...]


def read_record(run_dir: Path, answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what compress.json holds; None if there is none, or it is of another winner.

    Args:
        run_dir: possibly somebody else's.
        answer: what winner.json holds.
    """
    try:
        record = json.loads((run_dir / RECORD).read_bytes())
        files = answer.get("files")
        if not isinstance(record, dict) or not isinstance(files, Mapping):
            return None
        if record.get("winner") != files.get("winner.pt"):
            return None
        whole = record.get("digest") == digest_of_file(run_dir / NETWORK)
        return record if whole and [*compressed_rows(record), *record_lines(record)] else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def is_made_with(record: Mapping[str, Any], answer: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a record of the winner of an answer was made with these settings.

    Args:
        record: as `read_record` has read it for that answer.
        answer: what winner.json holds.
        settings: as they would be now.
    """
    taught = answer["files"].get(COMMITTEE_FILE) if settings.teacher == COMMITTEE else None
    return record.get("settings") == settings.document() and record.get("committee") == taught


def write_record(
    run_dir: Path, record: Mapping[str, Any], network: bytes, answer: Mapping[str, Any]
) -> None:
    """Writes compress.json, winner.onnx and the lines in the model card, in this order.

    The first has the digest of the second, so that what a killed command has left is not taken for
    whole; `complete_card` writes what it has not come to.

    Args:
        run_dir: where the study runs.
        record: what compress.json holds beside the digest.
        network: the content of winner.onnx.
        answer: what winner.json holds.

    Raises:
        OSError: a file cannot be written.
    """
    written = {**record, "digest": digest_of(network)}
    write_whole(run_dir / RECORD, json.dumps(written, indent=1))
    write_whole(run_dir / NETWORK, network)
    complete_card(run_dir, record, answer)


def complete_card(run_dir: Path, record: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Writes what a record says into the model card, if it has one and that is not there yet.

    Args:
        run_dir: where the study runs.
        record: what compress.json holds.
        answer: what winner.json holds.

    Raises:
        OSError: a file cannot be written.
    """
    files = answer.get("files")
    if not isinstance(files, Mapping) or CARD not in files:
        return
    before = (run_dir / CARD).read_bytes()
    head = before.decode().partition(HEADING)[0].rstrip()
    card = f"{head}\n\n{card_section(record)}\n".encode()
    if card == before:
        return
    # winner.json has the card's digest, and goes first as in `winner.answer.write_answer`.
    changed = {**answer, "files": {**files, CARD: digest_of(card)}}
    write_whole(run_dir / "winner.json", json.dumps(changed, indent=1))
    write_whole(run_dir / CARD, card)


def digest_of(content: bytes) -> str:
    """Returns the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def compressed_rows(record: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the heads of the table, and then a row for each variant.

    Args:
        record: what compress.json holds.
    """
    yield "variant", record["metric"]["name"], *HEADS
    for row in (record["original"], *record["variants"]):
        name = str(row["name"])
        if "note" in row:
            yield name, "–", "–", "–", "–", "–", str(row["note"])
            continue
        low, high = (format_value(float(end), "+") for end in row["drop_interval"])
        lost = "" if row is record["original"] else f"{low} to {high}"
        value, size = format_value(float(row["value"])), f"{int(row['bytes']):_}"
        times = [_latency(row["latency"][batch]) for batch in ("1", "64")]
        mark = CHOSEN if name == record["chosen"]["name"] else ""
        yield name, value, lost, size, *times, mark


def _latency(each: Mapping[str, Any]) -> str:
    median, low, high = (float(each[name]) for name in ("median", "low", "high"))
    return f"{median:.3g} ({low:.3g}–{high:.3g})"


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """Returns what is to be said of the variant that was chosen, in lines.

    Args:
        record: what compress.json holds.
    """
    chosen, test = record["chosen"], record["test"]
    metric, opened = record["metric"]["name"], int(test["openings"])
    sizes = f"{int(chosen['bytes']):_} bytes, winner.pt has {int(record['bytes_of_winner']):_}"
    faster = ", ".join(
        f"{float(theirs) / float(ours):.2f} × as fast at batch {batch}"
        for batch, (ours, theirs) in chosen["medians"].items()
    )
    low, high = (format_value(float(end), "+") for end in test["interval"])
    verdict = "within" if test["within"] else "not shown to be within"
    times = "once" if opened == 1 else f"{opened} times"
    taught = record.get("teacher")
    networks = int(taught["networks"]) if taught else 0
    learnt = (
        "pruned networks and students learnt from the targets and the mean of the committee, "
        f"{networks} network{'' if networks == 1 else 's'}"
    )
    return [
        f"chosen {chosen['name']} by {record['rule']}",
        *([learnt] if taught else []),
        f"{float(record['bytes_of_winner']) / float(chosen['bytes']):.2f} × smaller: {sizes}",
        f"{faster}, against PyTorch eager on {int(record['threads'])} "
        f"thread{'' if record['threads'] == 1 else 's'}: medians",
        f"test {metric} {format_value(float(test['value']))}, the original has "
        f"{format_value(float(test['original']))}, on {int(test['examples'])} examples",
        f"difference {format_value(float(test['difference']), '+')}, 95 % interval {low} to {high}"
        f"{' over examples' if test['covers'] else ', without one'}: {verdict} the margin of "
        f"{format_value(float(record['margin']))}",
        f"the test part was opened {times} in this study"
        f"{', for this very file by an earlier command' if test['earlier'] else ''}",
    ]


def card_section(record: Mapping[str, Any]) -> str:
    """Returns the section of the model card."""
    heads, *rows = compressed_rows(record)
    table = [[in_markdown(cell) for cell in row] for row in (heads, *rows)]
    table.insert(1, ["---"] * len(heads))
    lines = [f"| {' | '.join(row)} |" for row in table]
    said = [f"* {in_markdown(line[0].upper() + line[1:])}." for line in record_lines(record)]
    about = (
        "`winner.onnx` needs onnxruntime alone: its input is `inputs`, (n, …) as in training, its "
        "output `outputs`; how they were normalised is in its metadata, `studyloom`. All variants "
        "were judged on a validation part that neither they nor their original were trained on."
    )
    return "\n\n".join([HEADING, about, "\n".join(said), "\n".join(lines)])
