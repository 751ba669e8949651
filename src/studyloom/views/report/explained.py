"""The sections that explain the winner, by what winner.json holds of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studyloom.views.figures.calibration import calibration
from studyloom.views.figures.chart import Table
from studyloom.views.report.blocks import (
    FAINT,
    Block,
    Lines,
    Part,
    Picture,
    Pictures,
    Section,
    Shaded,
    drawn,
    get,
    is_embedded,
    number,
)

CALIBRATION = (
    "Each point is a tenth of the range of confidence, with the 95 % interval of its accuracy. "
    "Below the dotted line the winner is surer than it is right."
)
GROUPS = "The mean over the test examples of each {}, with its 95 % interval."
COLUMNS = (
    "How much worse the winner gets on the test part if one column is put in a random order, in "
    "the mean of 20 orders, with the 5th and the 95th percentile. A column that says what another "
    "one says too may seem not to matter."
)
OCCLUSIONS = (
    "What misled the winner: red is what made it sure of its mistake, blue is what spoke against "
    "it, told by covering one patch after the other. The number is the largest loss of confidence."
)
TEXTS = (
    "The most confident mistakes: true class → prediction. Red and underlined is what spoke for "
    "the mistake, blue and dotted what spoke for the truth; the other words changed little. Each "
    "word is left out wherever it is in the text. Its number is how much less sure of the mistake "
    "the winner is then, and “in all” is how sure it was: the log of how many times likelier than "
    "the truth it took the mistake to be."
)
STRONGEST = 6  # words of each side that are listed


def explained_sections(winner: dict[str, Any] | None) -> Iterator[Section]:
    """Renders what explains the winner; nothing of an answer of an earlier version.

    Args:
        winner: what winner.json holds, None if there is none; any key may be missing.
    """
    if pictures := [*_occlusions(winner)]:
        yield Section("misled", "What misled the winner", [Pictures(pictures)], OCCLUSIONS)
    if texts := [*_texts(winner)]:
        yield Section("words", "Which words misled it", texts, TEXTS)
    if isinstance(known := get(winner, "calibration"), dict):
        error = number(get(known, "error"))
        means = f"confidence {number(get(known, 'confidence'))}, accuracy "
        said = (
            f" Means: {means}{number(get(known, 'accuracy'))}; expected calibration error {error}."
        )
        block = drawn(calibration(known))
        yield Section("calibration", "How sure it is", [block], f"{CALIBRATION}{said}")
    if rows := [*_rows(get(winner, "groups", "rows"), "value")]:
        kind = "class" if get(winner, "groups", "of") == "class" else "group"
        name = get(winner, "metric", "name")
        heads = (kind, "examples", str(name), "95 % interval")
        left = get(winner, "groups", "left")
        note = f"{left} further ones with fewer examples are left out." if left else ""
        blocks: list[Block] = [Table(heads, rows, words=(0,), note=note)]
        yield Section("groups", f"{kind.capitalize()} by {kind}", blocks, GROUPS.format(kind))
    if rows := [*_rows(get(winner, "columns"), "worse", count=False)]:
        metric = get(winner, "metric", "name")
        head = ("column", f"{metric} worse by", "5 % to 95 %")
        yield Section("columns", "Which columns it needs", [Table(head, rows, words=(0,))], COLUMNS)


def _rows(held: Any, value: str, *, count: bool = True) -> Iterator[tuple[object, ...]]:
    """Yields the name, how many examples, a number, and its interval, of each row."""
    for row in held if isinstance(held, list) else ():
        ends = get(row, "interval")
        span = " to ".join(map(number, ends)) if isinstance(ends, list) else "–"
        many = (get(row, "count"),) if count else ()
        yield (get(row, "name"), *many, number(get(row, value)), span)


def _occlusions(winner: Mapping[str, Any] | None) -> Iterator[Picture]:
    """Yields the pictures of the mistakes with what misled the winner."""
    held, wrong = get(winner, "occlusions"), get(winner, "wrong")
    mistakes = wrong if isinstance(wrong, list) else []
    for item in held if isinstance(held, list) else ():
        if is_embedded(source := get(item, "image")):
            index = get(item, "index")
            mistake = next((one for one in mistakes if get(one, "index") == index), None)
            words, said = f"{get(mistake, 'label')} → ", str(get(mistake, "predicted"))
            label = f"what misled the winner on test image {index}"
            yield Picture(source, label, words, said, number(get(item, "most")))


def _texts(winner: Mapping[str, Any] | None) -> Iterator[Part]:
    """Yields the texts of the mistakes, with their words shaded and the strongest ones listed."""
    held, classes = get(winner, "texts"), get(winner, "classes")
    for item in held if isinstance(held, list) else ():
        words, changes, likely = (get(item, key) for key in ("words", "changes", "probabilities"))
        if not all(isinstance(each, list) for each in (words, changes, likely)):
            continue
        pairs = [
            (str(word), change)
            for word, change in zip(words, changes, strict=False)
            if isinstance(change, float) and math.isfinite(change)
        ]
        most = max((abs(change) for _, change in pairs), default=0.0)
        if not most:
            continue
        truth, mistake = (_name(classes, get(item, key)) for key in ("label", "predicted"))
        sure = " and ".join(map(number, likely))
        index, margin = get(item, "index"), get(item, "margin")
        remark = f"test text {index}, probabilities {sure}, in all {number(margin, '+')}"
        left = get(item, "left")
        lines = [
            f"for {name}: {', '.join(said)}"
            for name, said in ((mistake, _strongest(pairs, 1)), (truth, _strongest(pairs, -1)))
            if said
        ]
        lines += [f"{left} further words are not looked at"] if left else []
        shaded = Shaded([(word, change / most) for word, change in pairs])
        yield Part(f"{truth} → {mistake}", [shaded, Lines(lines)], remark)


def _strongest(pairs: Sequence[tuple[str, float]], sign: int) -> list[str]:
    """Returns the different words that spoke most for one side, each with its number."""
    least = FAINT * max(abs(change) for _, change in pairs)
    strong = {word: change for word, change in pairs if sign * change >= least}
    first = sorted(strong, key=lambda word: -sign * strong[word])[:STRONGEST]
    return [f"{word} {'+' if sign > 0 else '−'}{abs(strong[word]):.2f}" for word in first]


def _name(classes: object, number: object) -> str:
    """Returns the name of a class, or its number where it has none."""
    known = isinstance(classes, list) and isinstance(number, int) and 0 <= number < len(classes)
    return str(classes[number]) if known else str(number)  # type: ignore[index]
