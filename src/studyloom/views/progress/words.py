"""The progress of a job in words: stages, time left, what was spent."""

import textwrap
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from studyloom.storage.attributes import BASELINE
from studyloom.text import format_duration, format_parameter, one_line
from studyloom.views.progress.job import DONE, WORDS, Progress, describe_answer
from studyloom.views.snapshot import WorkerStatus, format_trial_values, paused, uncounted

DAY = timedelta(days=1)


def stage_words(progress: Progress) -> str:
    """Words how far the present stage has come, and how many of its trials were pruned."""
    if progress.title == DONE or progress.stage.title != progress.title:
        return WORDS[progress.title]
    stage, snapshot = progress.stage, progress.current
    pruned = [f"{progress.pruned} pruned"] if progress.pruned else []
    counts = [f"{stage.done}/{stage.budget}", *pruned, *paused(snapshot), *uncounted(snapshot)]
    return f"{WORDS[progress.title]} {', '.join(counts)}"


def all_stages(progress: Progress) -> str:
    """Words how far each stage has come, in their order; empty if there is but one."""
    if len(progress.stages) == 1:
        return ""
    return ", ".join(f"{WORDS[s.title]} {s.done}/{s.budget}" for s in progress.stages)


def best_words(progress: Progress) -> str:
    """Words the answer, or else the best trial so far."""
    if progress.answer is not None:
        return describe_answer(progress.answer)
    best = progress.search.best
    if best is None:
        return "no result yet"
    mark = ", the baseline" if BASELINE in best.user_attrs else ""
    return f"best {format_trial_values(best)} (trial {best.number}{mark})"


def time_words(progress: Progress) -> Iterator[str]:
    """Yields how long the job has run, how long it will, and what it has spent."""
    if progress.elapsed is not None:
        yield f"elapsed {format_duration(progress.elapsed)}"
    if not progress.ended:
        yield eta_words(progress)
    hours = progress.hours
    if hours.cores >= 0.01:
        yield f"{hours.cores:.2f} core-hours"
    if hours.gpus >= 0.01:
        yield f"{hours.gpus:.2f} GPU-hours"
    if progress.cost is not None:
        yield f"cost {progress.cost:.2f}"


def working_words(progress: Progress) -> str:
    """Words the stage, the time left and what was asked for; empty while nobody works on a job."""
    asked = control_words(progress)
    if progress.ended or not (asked or any(worker.alive for worker in progress.current.workers)):
        return ""
    stages = all_stages(progress) or stage_words(progress)
    parts = (f"At work: {stage_words(progress)}", f"in all {stages}", eta_words(progress), asked)
    return "; ".join(filter(None, parts if len(progress.stages) > 1 else (*parts[:1], *parts[2:])))


def eta_words(progress: Progress) -> str:
    """Words the time left of the whole job with its uncertainty, and when it ends."""
    eta = progress.eta
    if eta is None:
        return "ETA –"
    words = f"ETA {format_duration(eta.seconds)}"
    if eta.seconds < 1:
        return words
    low, high = format_duration(eta.low), format_duration(eta.high)
    between = "" if low == high else f" ({low} to {high})"
    return f"{words}{between}, at {clock_words(datetime.now() + timedelta(seconds=eta.seconds))}"


def clock_words(moment: datetime, now: datetime | None = None) -> str:
    """Formats a moment in local time: 15:42, or with the day if that is another one."""
    now = datetime.now() if now is None else now
    if moment.date() == now.date():
        return f"{moment:%H:%M}"
    return f"{moment:%a %H:%M}" if moment - now < 6 * DAY else f"{moment:%Y-%m-%d %H:%M}"


def control_words(progress: Progress) -> str:
    """Words what another terminal has asked for; empty for nothing."""
    held = len(progress.current.workers)
    if progress.control == "pause":
        return "paused" if not held else f"pausing: {held} trials are released at their last epoch"
    if progress.control == "stop" and not progress.ended:
        return "stopped" if not held else "stopping"
    return ""


def parameter_words(worker: WorkerStatus) -> str:
    """Words the parameters of the trial that a worker has."""
    return "  ".join(
        f"{one_line(name)}={format_parameter(value)}" for name, value in worker.params.items()
    )


def progress_line(progress: Progress) -> str:
    """Formats a job as one line, without what changes every second."""
    search = progress.search
    parts = [one_line(search.name), stage_words(progress), best_words(progress)]
    if running := len(progress.current.workers):
        parts.append(f"{running} running")
    if words := control_words(progress):
        parts.append(words)
    if search.outlook.ending is not None and progress.title == progress.stages[0].title:
        parts.append(search.outlook.ending.words)
    return "  ".join(parts)


def wrap(parts: Iterable[str], width: int, separator: str = ", ") -> list[str]:
    """Joins parts to lines that are no longer than `width`; a part is broken only if it must be.

    Args:
        parts: such as "elapsed 8 s".
        width: in columns.
        separator: between two parts of a line.
    """
    lines: list[str] = []
    for part in parts:
        end = separator.rstrip()
        if lines and len(lines[-1]) + len(separator) + len(part) + len(end) <= width:
            lines[-1] += separator + part
            continue
        if lines:
            lines[-1] += end
        lines += textwrap.wrap(part, width) or [""]
    return lines
