"""The exceptions: their tree is drawn as it is."""

import re

from studyloom import errors


def tree(kind, depth=0):
    """Yields each exception of ours with its depth, a base before those that derive from it."""
    yield depth, kind.__name__
    for derived in kind.__subclasses__():
        if derived.__module__ == errors.__name__:
            yield from tree(derived, depth + 1)


def test_the_docstring_of_errors_draws_the_tree_of_its_exceptions():
    drawn = re.findall(r"^( *)[*·+-] (\w+)", errors.__doc__, re.MULTILINE)
    tops = (errors.StudyloomError, errors.Stopped, errors.Interrupted)
    assert [(len(indent) // 2, name) for indent, name in drawn] == [
        each for top in tops for each in tree(top)
    ]
