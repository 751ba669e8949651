"""The lines that a command prints before the first trial: what is to do, and what follows."""

from studyloom.text import plural
from studyloom.views import words
from studyloom.winner.evaluation import Evaluation, read_evaluation
from studyloom.winner.stages import winner_settings
from studyloom.worker.open_study import OpenStudy
from studyloom.worker.task import Command, Task


def announce(study: OpenStudy, command: Command, task: Task) -> list[str]:
    """Returns the notes on a study, and what is to do, one line each.

    The last ones are such as `mnist begins: 40 trials to do, logs in runs/mnist/logs`, and how many
    trainings follow the search. A study that resumes may have some of these trainings already, so
    that only the trainings of its current stage are counted.
    """
    prepared = study.prepared
    stored = study.stored
    notes = [*prepared.strategy.notes(), *prepared.warm_starts.notes]
    notes += prepared.definition.notes(prepared.data)
    verb = "begins"
    if any(trial.datetime_start for trial in stored.trials()):
        verb = "resumes"
    open_search_trials = study.search.count_open_trials()
    if open_search_trials == 0:
        work = describe_stage(read_evaluation(study))
    else:
        work = f"{plural(open_search_trials, 'trial')} to do"
    logs = ""
    # The trainings of a later stage count as open trials of the task too.
    prints_here = prepared.launcher.works_here(task, task.count_open_trials())
    if not prints_here:
        logs = f", logs in {task.logs}"
    notes.append(f"{stored.name} {verb}: {work}{logs}")
    is_new = verb == "begins"
    if is_new and open_search_trials > 0 and winner_settings(study).enabled:
        notes.append(_announce_later_stages(study, command))
    return notes


def describe_stage(evaluation: Evaluation) -> str:
    """Describes the work of a stage after the search, and what is left of it once it has begun."""
    work = f"{evaluation.title} to do"  # such as final training
    if evaluation.planned is not None or not evaluation.remaining:
        return work
    stage = evaluation.stages[-1]
    return f"{work}, {evaluation.remaining} of {stage.trials} trainings left"


def _announce_later_stages(study: OpenStudy, command: Command) -> str:
    """Returns the line on the trainings after the search, and how to have fewer of them."""
    settings = winner_settings(study)
    fewer = {}
    if settings.top > 1:
        fewer["top"] = 1
    if settings.seeds > 1:
        fewer["seeds"] = 1
    shortening = ""
    if fewer:
        shortening = command.write_settings("winner", fewer)
    return words.announce_later_stages(
        settings.top,
        settings.seeds,
        is_tested=bool(study.definition.tested),
        shortening=shortening,
    )
