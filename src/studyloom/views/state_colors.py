"""The colors of the states of trials, the same in a terminal as on the page."""

import re

from rich.text import Text

# By the state as people see it. They are the light palette of assets/report/page.css, whose
# contrast is at least 3 to white and to black: a terminal may have either background.
STATE_COLORS = {
    "complete": "#2f6ae2",
    "pruned": "#8b9096",
    "failed": "#c3301e",
    "running": "#d97d00",
    "interrupted": "#d97d00",
    "paused": "#0b9cdc",
    "waiting": "#8b9096",
}
COUNT_OF_STATE = re.compile(rf"\b[1-9][\d,]* ({'|'.join(STATE_COLORS)})\b")


def color_state(text: Text, start: int, state: str) -> None:
    """Colors a state within a text.

    Args:
        start: where the state begins in the text.
        state: the state, which may be followed by words such as "resumes at epoch 3".
    """
    name, _, _ = state.partition(",")
    color = STATE_COLORS.get(name)
    if color is not None:
        text.stylize(color, start, start + len(state))


def color_counts(text: Text) -> Text:
    """Colors each count of trials in a text, such as "34 pruned", and returns the text.

    Counts of zero stay without color.
    """
    for match in COUNT_OF_STATE.finditer(text.plain):
        text.stylize(STATE_COLORS[match[1]], *match.span())
    return text
