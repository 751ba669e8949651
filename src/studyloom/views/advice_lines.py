"""Lines of a terminal about a search: its space, the importances, and the words of an expert."""

from collections.abc import Mapping, Sequence

from studyloom.storage.stored_study import StoredStudy
from studyloom.views.advice import Advice, format_share, list_advice
from studyloom.views.importances import collect_names, compute_importances
from studyloom.views.plain_names import name_plainly
from studyloom.views.snapshot import Snapshot
from studyloom.views.terminal_lines import wrap_parts
from studyloom.winner.result import Result


def wrap_searched(searched: str, width: int) -> list[str]:
    """Returns what was searched as lines; none for an empty text.

    Args:
        searched: the hyperparameters with their ranges, from `describe_searched`.
        width: the columns of a line.
    """
    if not searched:
        return []
    parts = f"searched: {searched}".split("; ")
    return wrap_parts(parts, width, "; ", indent=2)


def list_importances(shares: Mapping[str, float | None], snapshot: Snapshot) -> list[str]:
    """Returns a line for each hyperparameter: its plain name, and its importance in percent."""
    plain_names = name_plainly(collect_names(snapshot.trials, shares))
    longest = max((len(plain_names[name]) for name in shares), default=0)
    lines = []
    for name, share in shares.items():
        lines.append(f"  {plain_names[name]:{longest}}  {format_share(share or 0.0):>4}")
    return lines


def wrap_advice(advice: Sequence[Advice], width: int) -> list[str]:
    """Returns the sentences of an expert as lines; a line to copy is never broken."""
    lines = []
    for sentence in advice:
        lines += wrap_parts([sentence.text], width, indent=2, breaks_words=False)
        if sentence.line:
            lines.append(f"  {sentence.line}")
    return lines


def list_for_end(stored: StoredStudy, snapshot: Snapshot, result: Result | None) -> list[str]:
    """Returns what an expert would say at the end of a run, each with its line to copy below it.

    Whether the gain is real comes last, since the end has its interval already.
    """
    advice = list_advice(stored, snapshot, result, compute_importances(stored))
    texts = []
    for sentence in sorted(advice, key=lambda sentence: sentence.is_about_gain):
        text = sentence.text
        if sentence.line:
            text += f"\n  {sentence.line}"
        texts.append(text)
    return texts
