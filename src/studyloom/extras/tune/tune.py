"""The door of `studyloom tune`: writes the study of a command line, and says what will run."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from studyloom.config.overrides import Override
from studyloom.config.schema import StudySection
from studyloom.extras.tune.command_line import ParsedSearch, parse_search, parse_test
from studyloom.extras.tune.failed_study import move_failed_study_aside
from studyloom.extras.tune.search import Search, has_other_study, write_config
from studyloom.extras.tune.sweep_file import parse_sweep
from studyloom.metrics import Direction
from studyloom.processes import print_at_once
from studyloom.text import printable

RUNS = Path("runs")  # the folder of the run directories


@dataclass(frozen=True)
class WrittenStudy:
    """A study that `studyloom run CONFIG OVERRIDES` runs."""

    config: Path
    overrides: list[str]


def write_study(
    program: Sequence[str],
    *,
    metric: str,
    direction: Direction,
    name: str | None = None,
    fixed: Sequence[str] = (),
    value: str = "",
    step: str | None = None,
    tests: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> WrittenStudy:
    """Writes the config of the search that a command line describes, and prints what it runs.

    The arguments are those of `parse_search`.

    Args:
        name: the name of the study. None for that of the script; if a study of another search has
            the name, a number is added, so that the same command line finds its study again. One
            that stopped itself without any value is moved aside instead.
        tests: how the winner is tested: the name of a value or a regular expression with a group,
            a program, or both.
        overrides: of the study, such as study.trials=50.

    Raises:
        ConfigError: all errors in the command line.
    """
    parsed = parse_search(
        program,
        metric=metric,
        direction=direction,
        fixed=fixed,
        value=value,
        step=step,
    )
    return _write(parsed, name, tests, overrides)


def write_study_of_sweep(
    path: str,
    *,
    name: str | None = None,
    tests: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> WrittenStudy:
    """Writes the config of the search that a W&B sweep file describes, and prints what it runs.

    Args:
        path: the sweep file.
        name, tests, overrides: as those of `write_study`.

    Raises:
        ConfigError: every key of the file that is wrong or has no counterpart.
    """
    parsed = parse_sweep(Path(path))
    notes = (*parsed.notes, *_describe_budget(parsed, overrides))
    return _write(replace(parsed, notes=notes), name, tests, overrides)


def _describe_budget(parsed: ParsedSearch, overrides: Sequence[str]) -> Iterator[str]:
    """Yields the line that says how many trials a sweep has, and why."""
    given_trials = None
    for text in overrides:
        override = Override.parse(text)
        if override.key == "study.trials":
            given_trials = override.value
    if given_trials is not None and parsed.budget:
        yield f"trials    {given_trials} (in place of {parsed.budget})"
    elif parsed.budget:
        yield f"trials    {parsed.search.trials} ({parsed.budget})"
    elif given_trials is None:
        yield f"trials    {StudySection.trials} (the file has no run_cap)"


def _write(
    parsed: ParsedSearch, name: str | None, tests: Sequence[str], overrides: Sequence[str]
) -> WrittenStudy:
    """Writes the config of a search, with its name and tests, and prints what it runs."""
    test = parse_test(tests)
    search = replace(parsed.search, test_value=test.value, test_command=test.command)
    notes = [*parsed.notes]
    run_dir = None
    for text in overrides:
        override = Override.parse(text)
        if override.key == "run_dir" and override.value:
            run_dir = Path(override.value)
        if override.key == "study.name" and override.value:
            name = override.value
    if name is not None:
        search = replace(search, name=name)
    if run_dir is None:
        run_dir = RUNS / search.name
    if has_other_study(search, run_dir):
        new_place = move_failed_study_aside(run_dir)
        if new_place is not None:
            notes.append(
                f"{run_dir} had another search, which stopped itself before any trial had a "
                f"value; it is now {new_place}"
            )
        elif name is None and run_dir == RUNS / search.name:
            search = _choose_name(search)
            notes.append(
                f"{run_dir} has a study of another search; this one is {search.name} (--name "
                "chooses another name)"
            )
            run_dir = RUNS / search.name
    config = write_config(search, run_dir)
    for note in notes:
        print_at_once(printable(note))
    command = shlex.join(["studyloom", "run", str(config), *overrides])
    print_at_once(printable(f"the same as: {command}"))
    return WrittenStudy(config, [*overrides])


def _choose_name(search: Search) -> Search:
    """Returns the search with the first name that no study of another search has."""
    numbered_search = search
    for number in count(2):
        if not has_other_study(numbered_search, RUNS / numbered_search.name):
            break
        numbered_search = replace(search, name=f"{search.name}-{number}")
    return numbered_search
