"""The glossary holds: words that it replaced do not come back. Its source is the page Concepts.

Held are documents, every help, docstrings, messages, comments, and the texts of report and
templates. Names are not prose: code between backticks, arguments, keys.
"""

import ast
import inspect
import io
import json
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT
from test_readme import PAPERS

from studyloom.commands.parser import make_parser
from studyloom.config.overrides import study_help

FOLDERS = ("src", "studies", "conf", "scripts")
# Each word that was replaced, by the one that stands for it now.
REPLACED = {
    "hyperparameter": r"\bleaf\b|\bleaves (?:of|with|that|next)\b",
    "default configuration, default value": r"\bas composed\b|\bcomposed value\b",
    "study definition": r"\bquestions?\b",
    "defines, requests": r"\b(?:asks|asked)\b|\bwish(?:es|ed)?\b",
    "study module, report": r"\bpages?\b",
    "re-evaluation": r"\bjudg(?:e[sd]?|ings?)\b",
    "final training": r"\bretrain(?:s|ed|ings?)?\b",
    "objective": r"\bgoals?\b",
    "result": r"\b(?:the|its|an|study's) answers?\b",
    "new seeds": r"\bfresh\b",
    "training set, validation set, test set": r"\b(?:training|validation|test) parts?\b|\bsealed\b",
    "used once": r"\bopened once\b",
    "scaled": r"\bcarr(?:y|ies|ied|ying)\b",
    "compressed": r"\bma(?:de|kes?) small\b",
    "ensemble": r"\bcommittees?\b",
    "untrusted, external": r"\bforeign\b|\bfrom elsewhere\b",
    "fix": r"\bways? out\b|\bmend(?:s|ed)?\b",
    "error": r"\bmistakes?\b",
    "integer": r"\bwhole numbers?\b",
    "custom, your": r"\bof (?:one's|your|the user's|my|ours?|its|their) own\b",
    "next to, compared with": r"\bbeside\b",
    "only": r"\balone\b",
    "instead of": r"\bin (?:\w+ )?place of\b",
    "again, from scratch": r"\banew\b",
    "running": r"\bunder way\b",
    "report, print, send, show": r"\bt(?:old|ells|elling)\b",
    "layer": r"\brooms?\b",
    "you, a user": r"\b(?:whoever|somebody|nobody)\b",
    "satisfies": r"\bkeeps? to\b",
    "unchanged": r"\bas (?:it is|they are)\b",
    "crashes because of": r"\bdies? of\b",
    "resume, continue": r"\bgo(?:es|ing|ne)? on\b|\bwent on\b",
    "image": r"\bpictures?\b",
    "97.5%, 4.8×, 1,000": r"\d %|\d per ?cent\b|\d ×|\b\d+ \d{3}\b",
    "American spelling": r"behaviour|cancell(?:ed|ing)|catalogue|centre|colour|defence|favour"
    r"|honour|judgement|labell(?:ed|ing)|licence|modell|neighbour|travell|\bgrey\b"
    r"|analys(?:ed?|ing)\b"
    r"|(?:categor|character|custom|emphas|factor|final|general|initial|local|maxim|memor|minim"
    r"|normal|optim|organ|parameter|quant|random|real|recogn|regular|serial|standard|summar"
    r"|synchron|token|util|vector|visual)is(?:e[srd]?|ing|ations?)\b",
}
# What stands for something else, by the reason.
EXCEPT = {
    "pages that are no study": r"\b(?:documentation|memory) pages?\b|\bpage cache\b"
    r"|--page\b|/pages\.py",
    "shapes, multiplications": r"\d+(?: × \d+)+|\d × (?=\d\.)|\d × such as|<[^>\n]+>",
    "former names, in the changelog": r"\n(?:Renamed|Also renamed): [^#]*?\n\n",
}
FORMER = r"\bpruner=promotion\b|\bstudy\.(?:from|top|regret|stop=regret)\b"
WORDS = re.compile("|".join(f"({each})" for each in REPLACED.values()), re.IGNORECASE)
EXCEPTED = re.compile("|".join(EXCEPT.values()))
NAMES = re.compile(r"`[^`\n]+`|^ +\*{0,2}\w+: ", re.MULTILINE)  # code, an argument
COMMENT = re.compile(r"(?:^|\s)# .*", re.MULTILINE)
SHOWN = re.compile(r"""//[^\n]*|/\*.*?\*/|"[^"\n]*"|`[^`\n]*`""", re.DOTALL)
CODE = re.compile(r"\$\{.*?\}|\{[{%#].*?[}%#]\}", re.DOTALL)  # in a text of JavaScript, of Jinja
SUFFIXES = ("py", "yaml", "html", "js", "css", "toml", "json")


def python_texts(source: str) -> Iterator[str]:
    """Yields strings with a blank, docstrings among them, and comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield inspect.cleandoc(node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def strings(value: object) -> Iterator[str]:
    """Yields the strings in nested mappings."""
    if isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    else:
        yield str(value)


def texts(kind: str, source: str) -> Iterator[str]:
    """Yields what a person reads in a file of a kind."""
    if kind == "py":
        yield from python_texts(source)
    elif kind == "yaml":
        yield from COMMENT.findall(source)
    elif kind in ("toml", "json"):
        yield from strings(tomllib.loads(source) if kind == "toml" else json.loads(source))
    else:
        source = CODE.sub("", source)
        shown = (each.strip('`"') for each in SHOWN.findall(source))
        yield from (each for each in shown if " " in each)
        if kind == "html":
            yield re.sub(r"<[^>]*>", " ", source)


def replaced_words(text: str) -> list[str]:
    """Returns the replaced words of a text, each with the word that stands for it, and where."""
    text = EXCEPTED.sub(" ", text)
    found = [f"{match[0]}: a former name" for match in re.finditer(FORMER, text)]
    text = NAMES.sub(" ", text)
    for match in WORDS.finditer(text):
        use = [*REPLACED][match.lastindex - 1]
        near = " ".join(text[max(0, match.start() - 40) : match.end() + 40].split())
        found.append(f"{match[0]} → {use}: …{near}…")
    return found


def kind_of(path: Path) -> str:
    """Returns the suffix of a file; that of a template stands before `.txt`."""
    return path.name.removesuffix(".txt").rpartition(".")[2]


SOURCES = {
    str(path.relative_to(ROOT)): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.*"))
    if kind_of(path) in SUFFIXES
}
COMMANDS = make_parser().commands


@pytest.mark.parametrize("paper", PAPERS)
def test_the_documents_use_the_words_of_the_glossary(paper):
    assert replaced_words(PAPERS[paper]) == []


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_read_in_the_source_uses_the_words_of_the_glossary(name):
    path = SOURCES[name]
    said = texts(kind_of(path), path.read_text())
    assert [found for text in said for found in replaced_words(text)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_uses_the_words_of_the_glossary(command):
    assert replaced_words(COMMANDS[command].format_help()) == []


def test_the_help_of_all_uses_the_words_of_the_glossary():
    study = study_help("", str(ROOT / "conf"), "mnist", [])
    assert replaced_words(make_parser().format_help() + study) == []
