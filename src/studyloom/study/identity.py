"""A study is what it asks: compares the question stored with it with what is asked now."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studyloom.errors import QuestionError
from studyloom.question.sources import CODE, code_of

DIGEST = "data.digest"


def check_question(
    name: str,
    was: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    *,
    accept_code_change: bool = False,
) -> Mapping[str, Any]:
    """Checks that a study asks a question.

    Args:
        name: of the study.
        was: the question that is stored with it; None if there is none.
        now: what is asked, by config key.
        accept_code_change: whether the user's own code may be another than before.

    Returns:
        The question to store: with the digests of the code as it is now, if that is accepted.

    Raises:
        QuestionError: the study asks another question, or another program has made it.
    """
    if was is None:
        raise QuestionError(
            f"study.name: the study {name!r} was not made by studyloom, but by another program "
            "that uses Optuna; it stays as it is; give this one another name: study.name=…"
        )
    accepted = dict(was)
    if was.get(DIGEST) == "":  # an earlier version did not read the data that a function's config
        accepted[DIGEST] = now.get(DIGEST)  # names; which they are is in its other keys
    if accept_code_change or not code_of(was):  # an earlier version stored none
        accepted = {key: accepted[key] for key in was if key not in code_of(was)} | code_of(now)
    if changes := differences(accepted, now):
        raise _another_question(name, changes)
    return accepted


def check_code(name: str, was: Mapping[str, Any], now: Callable[[], Mapping[str, Any]]) -> None:
    """Checks for a worker that the user's own code is that of the study.

    Somebody may edit it while the study runs, and a worker that is started then would read it.

    Args:
        name: of the study.
        was: the digests of the code that are stored with it.
        now: returns the digests of the code; only called if the study has some.

    Raises:
        QuestionError: the code is another.
    """
    if was and (changes := differences(was, now())):
        raise _another_question(name, changes)


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns `key: was → is` for each key whose value differs, by key.

    Args:
        was: the values before.
        now: the values after.
    """
    return [
        f"{key}: {was.get(key, '(absent)')} → {now.get(key, '(absent)')}"
        for key in sorted({*was, *now})
        if was.get(key, "(absent)") != now.get(key, "(absent)")
    ]


def _another_question(name: str, changes: Sequence[str]) -> QuestionError:
    """Makes the error that shows how the question of a study differs from what is asked."""
    way_out = "go back to that question, or give this one another name: study.name=…"
    if all(change.startswith(CODE) for change in changes):
        way_out = (
            "only your own code differs: go back to what it was, go on with "
            "study.accept_code_change=true, or give this study another name: study.name=…"
        )
    return QuestionError(
        f"study.name: the study {name!r} asks another question, so its trials cannot be "
        "compared:\n" + "".join(f"  {change}\n" for change in changes) + way_out
    )
