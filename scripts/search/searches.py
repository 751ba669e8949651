"""Searches of tables by TPE as shipped, for answers and early ends.

One set of searches serves both, each of 100 trials, of which shorter ones are the first. They
have the space and the sampler of a real question, seeded for the trial, but no worker, since a
trial of a table has one epoch. Trial 0 is in the middle of the space, where a page's own
configuration would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from .methods import Run
from .simulator import Tape, ask
from .tables import SPACES, Recorded, Task, load, size

TRIALS = 100
SAMPLER = ("sampler=tpe",)


@dataclass(frozen=True)
class Searches:
    """Searches that a process runs one after the other.

    Args:
        family: of the task.
        task: its name.
        seeds: of the studies.
    """

    family: str
    task: str
    seeds: tuple[int, ...]


def search(results: Recorded, seed: int) -> Tape:
    """Searches a table with TPE as shipped; its trials have one epoch each.

    Args:
        seed: of the study.
    """
    task, tape = results.task, Tape(TRIALS)
    question, study = ask(task, SAMPLER, seed), optuna.create_study(direction="maximize")
    middle = {f"params.{name}": size(node) // 2 for name, node in SPACES[task.family].items()}
    study.enqueue_trial(middle)
    for number in range(TRIALS):
        study.sampler = question.sampler(number)
        trial = study.ask()
        configuration = results.find(question.space.suggest(trial))
        value = float(results.curve(configuration)[-1])
        note(tape, number, configuration, value)
        study.tell(trial, value)
    return tape


def note(tape: Tape, trial: int, configuration: int, value: float) -> None:
    """Notes a trial of one epoch."""
    tape.trials.append(trial)
    tape.configurations.append(configuration)
    tape.epochs.append(1)
    tape.values.append(value)


def run_searches(job: Searches) -> tuple[Searches, list[list[int]]]:
    """Returns the configurations that searches tried, each in a process of its own."""
    task = load(job.family, job.task)
    assert isinstance(task, Task)
    return job, [search(task.begin(seed), seed).configurations for seed in job.seeds]


def as_run(results: Recorded, configurations: Sequence[int]) -> Run:
    """Returns a search that tried some configurations, in trials of one epoch."""
    tape = Tape(len(configurations))
    for trial, configuration in enumerate(configurations):
        note(tape, trial, configuration, float(results.curve(configuration)[-1]))
    return Run(results, tape)
