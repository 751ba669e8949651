"""The glossary holds: words that it replaced do not come back. Its source is the page Concepts."""

import re

import pytest
from test_readme import PAPERS

# Each word that was replaced, by the one that stands for it now.
REPLACED = {
    "hyperparameter, configuration": r"\bas composed\b|\bcomposed value\b",
    "study definition": r"\b(?:another|same|one|the|a) questions?\b",
    "re-evaluation": r"\bjudg(?:e[sd]?|ings?)\b",
    "new seeds": r"\bfresh\b",
    "training set, validation set, test set": r"\b(?:training|validation|test) parts?\b|\bsealed\b",
    "compressed": r"\bma(?:de|kes?) small\b",
    "ensemble": r"\bcommittees?\b",
    "fix": r"\bways? out\b|\bmend(?:s|ed)?\b",
    "error": r"\bmistakes?\b",
    "integer": r"\bwhole numbers?\b",
    "custom, your": r"\bof (?:one's|your|the user's|my|ours?) own\b",
    "next to, compared with": r"\bbeside\b",
    "only": r"\balone\b",
    "instead of": r"\bin place of\b",
    "again, from scratch": r"\banew\b",
    "running": r"\bunder way\b",
    "layer": r"\brooms?\b",
    "you, a user": r"\b(?:whoever|somebody|nobody)\b",
    "satisfies": r"\bkeeps? to\b",
    "resume, continue": r"\bgo(?:es|ing)? on\b",
    "image": r"\bpictures?\b",
    "ASHA": r"pruner=promotion",
    "warm start": r"\bstudy\.(?:from|top)\b",
    "improvement": r"\bstudy\.(?:regret|stop=regret)\b",
    "numbers": r"\d %|\d ×|\b\d \d{3}\b",
}
# What stands for something else: names in the code, what a program prints, and former names.
EXCEPT = {
    "new seeds": r"`fresh` in a result is",
    "image": r"`studyloom\.data\.Picture` is",
    "error": r"`mistakes` of an error are",
    "warm start": r"`study\.from` and\n`study\.top` are",
    "improvement": r"`study\.stop=regret` and\n`study\.regret` are",
    "ASHA": r"`pruner=promotion` is `asha`",
    "numbers": r"\d+ × \d+|\d × such as|<[^>]+>",
}


@pytest.mark.parametrize("paper", PAPERS)
def test_the_documents_use_the_words_of_the_glossary(paper):
    found = []
    for word, pattern in REPLACED.items():
        text = re.sub(EXCEPT.get(word, r"(?!)"), "", PAPERS[paper])
        found += [(word, match[0]) for match in re.finditer(pattern, text, re.IGNORECASE)]
    assert found == [], "use the word on the left"
