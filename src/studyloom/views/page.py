"""The parts of a page of HTML that needs nothing but itself: texts, numbers, sections, figures, and what is around.

Whatever comes from a study is shown as text, and the page's own policy forbids all network, and all scripts but its
two.
"""

import base64
import hashlib
import html
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from studyloom import __version__
from studyloom.files import ASSETS
from studyloom.text import format_value, mask_passwords

ABSENT = '<p class="absent">'


def text(value: object) -> str:
    """Whatever comes from a study, as HTML that shows it, without passwords."""
    return html.escape(mask_passwords(str(value)))


def get(tree: Any, *keys: str) -> Any:
    """What lies below keys of nested dictionaries; None where one is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(value: object, sign: str = "") -> str:
    """A number, or – where there is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    return format_value(value, sign).replace("-", "−")


def spread(tree: Any) -> str:
    """Mean and standard deviation, as HTML."""
    return f"{number(get(tree, 'mean'))} <small>± {number(get(tree, 'std'))}</small>"


def absent(why: str) -> str:
    return f"{ABSENT}{why}</p>"


def section(title: str, caption: str, content: str) -> str:
    about = "" if not caption or content.startswith(ABSENT) else f'<p class="caption">{caption}</p>'
    return f"<section><h2>{title}</h2>{about}{content}</section>\n"


def plot(figure: go.Figure | str, kind: str = "") -> str:
    """A figure, which report.js draws from the JSON beside it, under its legend; the reason where there is none."""
    if isinstance(figure, str):
        return absent(figure)
    figure.layout.template = None
    data = figure.to_json(
        engine="json"
    )  # with < and > as \u003c and \u003e, so that no text ends the script
    height = figure.layout.height
    return (
        f'{legend(figure)}<div class="{kind}"><div class="plot" style="height:{height}px"></div>'
        f'<script type="application/json">{data}</script></div>'
    )


def legend(figure: go.Figure) -> str:
    entries = []
    for trace in figure.data:
        if trace.showlegend:
            drawn = "lines" in (getattr(trace, "mode", None) or "")
            shape = "marker" if not drawn else "dot" if trace.line.dash == "dot" else ""
            colour = trace.line.color if drawn else trace.marker.color
            entries.append(f'<li><i class="{shape}" style="color:{colour}"></i>{trace.name}</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>' if entries else ""


def multiples(drawn: dict[str, go.Figure] | str) -> str:
    """Small figures side by side, under their literal names."""
    if isinstance(drawn, str):
        return absent(drawn)
    each = (
        f"<figure><figcaption>{name}</figcaption>{plot(figure)}</figure>"
        for name, figure in drawn.items()
    )
    return f'<div class="multiples">{"".join(each)}</div>'


def folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary><pre>{text(content)}</pre></details>"


def document(name: str, body: str) -> str:
    """The whole page. Its policy lets in no network, and of scripts those alone that have the hashes of these."""
    scripts = [get_plotlyjs(), (ASSETS / "report.js").read_text()]
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
{(ASSETS / "report.css").read_text()}</style>
</head>
<body>
{body}<noscript><p>The figures need JavaScript.</p></noscript>
<footer>studyloom {text(__version__)}</footer>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""
