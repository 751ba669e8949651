"""The parts of an HTML page that needs no other file: texts, numbers, sections and figures.

Whatever comes from a study is escaped, and the page's own policy forbids all network and all
scripts but the two it contains.
"""

import base64
import hashlib
import html
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from studyloom import __version__
from studyloom.compress.record import compressed_rows, record_lines
from studyloom.files import ASSETS
from studyloom.text import format_value, mask_passwords, printable

ABSENT = '<p class="absent">'


def text(value: object) -> str:
    """Makes whatever comes from a study safe to show, escapes it, and masks passwords."""
    return html.escape(mask_passwords(printable(str(value))))


def get(tree: Any, *keys: str) -> Any:
    """Returns what nested dictionaries hold under these keys; None where one is missing.

    Args:
        tree: nested dictionaries, or anything else.
        keys: a key for each level.

    Returns:
        The value; None where a key is missing, or a level is not a dictionary.
    """
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(value: object, sign: str = "") -> str:
    """Formats a number for people.

    Args:
        value: the number; a dash is shown for anything else.
        sign: "+" to show the sign of positive numbers too.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    return format_value(value, sign).replace("-", "−")


def spread(tree: Any) -> str:
    """Renders the `mean` and the standard deviation `std` of a dictionary as HTML."""
    return f"{number(get(tree, 'mean'))} <small>± {number(get(tree, 'std'))}</small>"


def committee_cards(entry: Any) -> Iterator[tuple[str, str, str]]:
    """Returns heading, number and note of what a committee came to; nothing without one.

    Args:
        entry: of winner.json, any key of which may be missing.
    """
    if isinstance(get(entry, "members"), list):
        ours, theirs = (get(entry, "costs", "parameters") or (None, None))[:2]
        costs = f"{number(ours)} parameters, the winner has {number(theirs)}"
        yield "Committee, test", number(get(entry, "test")), f"{len(entry['members'])} networks"
        difference = number(get(entry, "difference", "mean"), "+")
        yield "Committee minus winner, test", difference, costs
    elif (note := get(entry, "note")) is not None:
        yield "Committee, test", number(None), text(note)


def compressed(record: dict[str, Any]) -> str:
    """Renders the variants of a winner that was made small as a table, and what was chosen.

    Args:
        record: what compress.json holds.
    """
    heads, *rows = compressed_rows(record)
    lines = [f"<tr>{''.join(f'<th>{text(head)}</th>' for head in heads)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows]
    said = "".join(f"<p>{text(line)}</p>" for line in record_lines(record))
    return f"<table>{''.join(lines)}</table>{said}"


def absent(why: str) -> str:
    """Renders a sentence in place of something that is missing."""
    return f"{ABSENT}{why}</p>"


def section(title: str, caption: str, content: str) -> str:
    """Renders a section; without its caption if the content is missing.

    Args:
        title: the heading, as HTML.
        caption: a sentence or two, as HTML.
        content: what is below, as HTML.
    """
    about = "" if not caption or content.startswith(ABSENT) else f'<p class="caption">{caption}</p>'
    return f"<section><h2>{title}</h2>{about}{content}</section>\n"


def plot(figure: go.Figure | str, kind: str = "") -> str:
    """Renders a figure below its legend; report.js draws it from the JSON beside it.

    Args:
        figure: the figure, or the sentence to show in its place.
        kind: the CSS class of the element around it, such as wide.
    """
    if isinstance(figure, str):
        return absent(figure)
    figure.layout.template = None
    # This engine writes < and > as \u003c and \u003e, so that no text ends the script.
    data = figure.to_json(engine="json")
    height = figure.layout.height
    return (
        f'{legend(figure)}<div class="{kind}"><div class="plot" style="height:{height}px"></div>'
        f'<script type="application/json">{data}</script></div>'
    )


def legend(figure: go.Figure) -> str:
    """Renders the names and colours of the traces that are to be in the legend."""
    entries = []
    for trace in figure.data:
        if trace.showlegend:
            line = "lines" in (getattr(trace, "mode", None) or "")
            shape = "marker" if not line else "dot" if trace.line.dash == "dot" else ""
            colour = trace.line.color if line else trace.marker.color
            entries.append(f'<li><i class="{shape}" style="color:{colour}"></i>{trace.name}</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>' if entries else ""


def multiples(figures: dict[str, go.Figure] | str) -> str:
    """Renders small figures side by side, under their names.

    Args:
        figures: the figures by name, as HTML; or the sentence to show in their place.
    """
    if isinstance(figures, str):
        return absent(figures)
    each = (
        f"<figure><figcaption>{name}</figcaption>{plot(figure)}</figure>"
        for name, figure in figures.items()
    )
    return f'<div class="multiples">{"".join(each)}</div>'


def folded(title: str, content: str) -> str:
    """Renders a long text that is folded away below its title.

    Args:
        title: what to click on, as HTML.
        content: the text.
    """
    return f"<details><summary>{title}</summary><pre>{text(content)}</pre></details>"


def document(name: str, body: str) -> str:
    """Renders the whole page around its body.

    Its policy allows no network, and only the scripts whose hashes it lists.

    Args:
        name: the page's title, as text.
        body: the content, as HTML.
    """
    scripts = [get_plotlyjs(), (ASSETS / "report.js").read_text("utf-8")]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{text(name)}</title>
<link rel="icon" href="data:,">
<style>
{(ASSETS / "report.css").read_text("utf-8")}</style>
</head>
<body>
{body}<noscript><p>The figures need JavaScript.</p></noscript>
<footer>studyloom {text(__version__)}</footer>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""
