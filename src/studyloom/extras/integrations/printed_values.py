"""Named values and steps in the lines that a training script prints.

A named value is a number after its name: `val_acc=0.93`, `val acc: 0.93`, `'val_acc': 0.93`, or
`"val_acc": 0.93` in a line of JSON. In a table the names stand in a header, and each later line has
a number for each of them. A step is the number after the word epoch, step or iter.

Two names are similar if they differ in blanks, `_`, `-` and case only: val_acc, "val acc", Val-Acc.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from studyloom.text import nearest

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|NaN|Infinity)"  # also of JSON
# Between a name and its number: `=`, `:`, the bar of a table or blanks; then perhaps a quote or
# `tensor(`.
SEPARATOR = r"['\"]?(?:\s*(?:[=:|]|->)\s*|\s+)['\"]?(?:[A-Za-z][\w.]*\()?"
START_OF_NAME = r"(?<![\w./-])"
NO_BEST = r"(?<![Bb]est )(?<!BEST )(?<![Bb]est: )"  # "best val_acc 0.95" repeats an earlier value
WORD = r"[A-Za-z_][\w./@-]*"
# A name does not begin within a word, such as after the @ of hits@k: otherwise each @ of a long
# word would cost a search to its end.
NOT_IN_WORD = r"(?<![\w./@-]@)"
NAMED_NUMBER = re.compile(
    rf"{START_OF_NAME}{NOT_IN_WORD}(?P<name>{WORD}(?: {WORD}){{0,2}})"
    rf"{SEPARATOR}(?P<value>{NUMBER})(?!\w)"
)
BARE_NUMBER = re.compile(rf"(?<![\w.])(?:{NUMBER})(?![\w.])")
START_OF_NUMBER = re.compile(r"[-+]?\.?\d|[-+]?(?:nan|inf|NaN|Inf)|[-–—]+$")
# The words before the number of a step, the one that counts before the others.
STEP_KINDS = ("epoch", "step", "iter")
# The word and the number, such as epoch: [3. Each run of blanks can be matched in one way only:
# otherwise the time to search a line would grow with the cube of their number.
STEP_NUMBER = r"['\"]?\s*(?:[=:#|]\s*)?(?:[\[(]\s*)?(?P<step>\d+(?:\.0+)?)"
STEP_PATTERNS = {
    "epoch": re.compile(rf"(?i)(?<![a-z_])epoch{STEP_NUMBER}"),
    "step": re.compile(rf"(?i)(?<![a-z_])(?:global_)?step{STEP_NUMBER}"),
    "iter": re.compile(rf"(?i)(?<![a-z_])iter(?:ation)?{STEP_NUMBER}"),
}
COLOR_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
VALIDATION = ("val", "valid", "validation")  # first words of the names of values on this set
TABLE_BORDER = re.compile(r"[│┃║]")


@dataclass(frozen=True)
class PrintedNumber:
    """A number as it was printed.

    Attributes:
        text: the number, such as 0.930.
        steps: the numbers of the steps in the same line, by their kind: epoch, step or iter.
    """

    text: str
    steps: Mapping[str, int]

    @property
    def significant_digits(self) -> int:
        """The number of its digits without zeros at the front: 3 for 0.930 and for 93.0."""
        mantissa = re.split("[eE]", self.text)[0]
        digits = re.sub(r"\D", "", mantissa)
        return len(digits.lstrip("0"))


@dataclass
class NamedValueReader:
    """Finds the value of one name in lines, which may be rows of a table whose header came before.

    The value of a similar name counts until the name itself has a value.

    Args:
        name: the name of the value, such as val_acc or "val acc".

    Example:
        >>> reader = NamedValueReader("val_acc")
        >>> reader.read("epoch 3: loss=0.31, val_acc=0.93")
        PrintedNumber(text='0.93', steps={'epoch': 3})
        >>> reader.read("loss=0.31")
    """

    name: str
    _pattern: re.Pattern[str] = field(init=False, repr=False)
    _similar_pattern: re.Pattern[str] = field(init=False, repr=False)
    _has_found_name: bool = False  # whether the name itself had a value
    _header: Sequence[str] = ()  # the names of the columns of the last table
    _column: str = ""  # the name in the header

    def __post_init__(self) -> None:
        words = [re.escape(word) for word in self.name.split()]
        self._pattern = _compile_pattern(r"\s+".join(words))
        characters = [re.escape(character) for character in fold_name(self.name)]
        similar_name = r"[\s_-]*".join(characters)
        self._similar_pattern = _compile_pattern(f"(?i:{similar_name})")

    def read(self, line: str) -> PrintedNumber | None:
        """Returns the last value of the name in a line, with the steps there; None without one."""
        line = clean_line(line)
        texts = [match["value"] for match in self._pattern.finditer(line)]
        if texts:
            self._has_found_name = True
        elif not self._has_found_name:
            texts = [match["value"] for match in self._similar_pattern.finditer(line)]
        if texts:
            return PrintedNumber(texts[-1], find_steps(line))
        column = self._find_column(line)
        if column is not None:
            self._header = split_cells(line)
            self._column = column
            return None
        return self._read_row(line)

    def _find_column(self, line: str) -> str | None:
        """Returns the name, or a similar one, as a header has it; None if the line is no header.

        A header has the name in a cell of its own, and no number.
        """
        cells = split_cells(line)
        if len(cells) < 2 or any(BARE_NUMBER.fullmatch(cell) for cell in cells):
            return None
        if self.name in cells:
            return self.name
        if self._has_found_name:
            return None
        for cell in cells:
            if fold_name(cell) == fold_name(self.name):
                return cell
        return None

    def _read_row(self, line: str) -> PrintedNumber | None:
        """Returns the value in a row of the last table; None if the line is no row of it."""
        cells = split_cells(line)
        if not self._header or len(cells) != len(self._header):
            return None
        has_separators = any(separator in line for separator in "|,\t")
        # Words of a sentence are as many as the columns by chance; so each must begin as a number
        # does, such as 1/3 or 2.1G.
        if not has_separators and not all(START_OF_NUMBER.match(cell) for cell in cells):
            return None
        row = dict(zip(self._header, cells, strict=True))
        if not BARE_NUMBER.fullmatch(row[self._column]):
            return None
        if self._column == self.name:
            self._has_found_name = True
        steps = {}
        for column, cell in row.items():
            kind = column.lower()
            step = re.fullmatch(r"(\d+)(\.0+|/\d+)?", cell)
            if kind in STEP_KINDS and step is not None:
                steps[kind] = int(step[1])
        return PrintedNumber(row[self._column], steps)


def _compile_pattern(name: str) -> re.Pattern[str]:
    """Returns the pattern of a name and its number; the name is a pattern itself."""
    return re.compile(rf"{START_OF_NAME}{NO_BEST}{name}{SEPARATOR}(?P<value>{NUMBER})(?!\w)")


def fold_name(name: str) -> str:
    """Returns what similar names have in common: valacc for val_acc, "val acc" and Val-Acc.

    A name of `_` and `-` alone is similar to itself only.
    """
    folded_name = re.sub(r"[\s_-]", "", name).lower()
    if not folded_name:
        return name
    return folded_name


def suggest_name(name: str, printed_names: Iterable[str]) -> str:
    """Returns "did you mean NAME?" for a name that was not printed, or "" if none is close.

    A name with the same first word goes before others. A value on the test set is no suggestion,
    since a search must not see it, unless the name itself has the word test.

    Example:
        >>> suggest_name("val_accuracy", ["train loss", "val acc", "test accuracy"])
        'did you mean val acc?'
    """
    candidates = []
    for printed_name in printed_names:
        if "test" in name.lower() or "test" not in printed_name.lower():
            candidates.append(printed_name)
    first_word = _find_first_word(name)
    preferred = [other for other in candidates if _find_first_word(other) == first_word]
    suggestion = nearest(name, preferred) or nearest(name, candidates)
    return suggestion.removeprefix("; ")


def _find_first_word(name: str) -> str:
    """Returns the first word of a name in lower case; val for each word for validation."""
    match = re.search(r"[^\W_]+", name.lower())
    if match is None:
        return ""
    if match[0] in VALIDATION:
        return "val"
    return match[0]


def clean_line(line: str) -> str:
    """Returns a line without the codes of colors, and with plain bars in a table."""
    return TABLE_BORDER.sub("|", COLOR_CODE.sub("", line))


def split_cells(line: str) -> list[str]:
    """Splits a line into the cells of a table: at bars, commas or tabs, or else at blanks."""
    line = line.strip()
    for separator in "|,\t":
        if separator in line:
            cells = line.strip("|").split(separator)
            return [cell.strip().strip("'\"") for cell in cells]
    cells = re.split(r"\s{2,}", line)
    are_numbers = all(BARE_NUMBER.fullmatch(cell) for cell in line.split())
    if len(cells) > 1 and not are_numbers:
        return cells  # names such as "val loss" have a blank
    return line.split()


def find_steps(line: str) -> dict[str, int]:
    """Returns the numbers of the steps in a line, by their kind: epoch, step or iter.

    Example:
        >>> find_steps("Epoch [3/10] step 40: loss 0.31")
        {'epoch': 3, 'step': 40}
    """
    steps = {}
    for kind, pattern in STEP_PATTERNS.items():
        match = pattern.search(line)
        if match is not None:
            steps[kind] = int(float(match["step"]))
    return steps


def find_named_numbers(line: str) -> dict[str, str]:
    """Returns each name in a line that a number follows, with the number as printed.

    Example:
        >>> find_named_numbers("train loss 4.2, val loss 4.1")
        {'train loss': '4.2', 'val loss': '4.1'}
    """
    return {match["name"]: match["value"] for match in NAMED_NUMBER.finditer(clean_line(line))}


def find_unnamed_numbers(line: str) -> list[str]:
    """Returns the numbers in a line that follow no name, as printed."""
    return BARE_NUMBER.findall(NAMED_NUMBER.sub("", clean_line(line)))
