"""Hyperparameters in plain words, as sentences name them: "learning rate 0.0057, hidden 64-32"."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from studyloom.text import format_parameter, one_line, shorten, shorten_names, write_minus

# The words for parts of the names of hyperparameters: an abbreviation, and the networks and
# optimizers of conf/, as the headline writes their classes.
WORDS = {
    "lr": "learning rate",
    "adam": "Adam",
    "adamw": "AdamW",
    "cnn": "CNN",
    "gru": "GRU",
    "lstm": "LSTM",
    "mlp": "MLP",
    "muon": "Muon",
    "rmsprop": "RMSprop",
    "rnn": "RNN",
    "sgd": "SGD",
    "transformer": "Transformer",
}
LONGEST = 32  # characters of a name or value in a sentence


def name_plainly(names: Iterable[str]) -> dict[str, str]:
    """Returns a plain name for each dotted name, and no plain name twice.

    It has only as many of the last parts as distinguish the name from the others: "learning rate"
    for optimizer.lr, or "encoder learning rate" if there is a decoder.lr too. A long name loses its
    middle, unless it would then be the same as another.
    """
    plain_names = {}
    for name, short_name in shorten_names(names).items():
        words = []
        for part in one_line(short_name).split("."):
            words.append(write_plainly(part))
        plain_names[name] = " ".join(words)
    shortened_names = {name: shorten(plain, LONGEST) for name, plain in plain_names.items()}
    for candidates in (shortened_names, plain_names):
        counts = Counter(candidates.values())
        if max(counts.values(), default=0) <= 1:
            return candidates
    return {name: one_line(name) for name in plain_names}


def write_plainly(part: str) -> str:
    """Writes a part of a dotted name, or an option of a group, in plain words: AdamW, batch size.

    Examples:
        >>> write_plainly("adamw"), write_plainly("batch_size")
        ('AdamW', 'batch size')
    """
    return WORDS.get(part, part.replace("_", " "))


def describe_settings(params: Mapping[str, Any]) -> list[str]:
    """Describes each hyperparameter of a trial in plain words, such as "learning rate 0.0057"."""
    values = join_lists(params)
    names = name_plainly(values)
    settings = []
    for name, value in values.items():
        plain_value = WORDS.get(value, value)  # such as CNN for the network cnn
        settings.append(f"{names[name]} {shorten(plain_value, LONGEST)}")
    return settings


def join_lists(params: Mapping[str, Any]) -> dict[str, str]:
    """Formats each hyperparameter; the items of a list are joined.

    A list `hidden` of the search space is stored as `hidden.length`, `hidden.0`, `hidden.1`.
    """
    formatted: dict[str, str] = {}
    for key, value in params.items():
        list_name, _, last_part = key.rpartition(".")
        is_of_list = last_part == "length" or last_part.isdecimal()
        if is_of_list and f"{list_name}.0" in params:
            formatted[list_name] = _join_items(params, list_name)
        else:
            formatted[key] = format_briefly(value)
    return formatted


def _join_items(params: Mapping[str, Any], list_name: str) -> str:
    """Joins the items of a list of the search space: 64-32."""
    items: list[str] = []
    key = f"{list_name}.0"
    while key in params:
        items.append(format_briefly(params[key]))
        key = f"{list_name}.{len(items)}"
    return "-".join(items)


def format_briefly(value: object) -> str:
    """Formats the value of a hyperparameter; a number has two digits, and a real minus sign."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return format_parameter(value)
    text = str(value)
    if isinstance(value, float):
        text = f"{value:.2g}"
    return write_minus(text)
