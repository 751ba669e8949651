"""A study that stopped itself before any of its trials had a value.

Its metric was misspelled, for example. It gives way to the study of a corrected command line.
"""

from itertools import count
from pathlib import Path

from studyloom.config.runs import read_run
from studyloom.errors import StudyloomError
from studyloom.files import is_trusted, mark_trusted

DEADLINE = 2.0  # seconds to wait for a database that is busy


def move_failed_study_aside(run_dir: Path) -> Path | None:
    """Moves the run directory of a study that stopped itself before any trial had a value.

    Args:
        run_dir: a directory in which a study has run.

    Returns:
        The new directory, such as runs/train-failed. None if the directory stays: the study has
        values, may still run, has a database elsewhere, or is not this user's.
    """
    if not (run_dir / "study.db").is_file() or not is_trusted(run_dir):
        return None
    if not _has_failed(run_dir):
        return None
    for number in count(1):
        suffix = "-failed"
        if number > 1:
            suffix += f"-{number}"
        new_place = run_dir.with_name(run_dir.name + suffix)
        if not new_place.exists():
            break
    run_dir.rename(new_place)
    mark_trusted(new_place)
    return new_place


def _has_failed(run_dir: Path) -> bool:
    """Returns True if the study has stopped itself, and no trial has reported a value."""
    from studyloom.storage.opening import open_study  # it takes a second, which few commands need

    try:
        url, name = read_run(run_dir)
        stored = open_study(url, name, deadline=DEADLINE)
    except StudyloomError:  # the study itself says later what is wrong with it
        return False
    try:
        trials = stored.optuna.get_trials(deepcopy=False)  # those of other programs too
        has_values = any(trial.values or trial.intermediate_values for trial in trials)
        return stored.halted() is not None and not has_values
    finally:
        stored.close()
