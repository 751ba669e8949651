"""The top of a report: the result in a sentence, four facts, and advice."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import StoredStudy
from studyloom.text import format_duration
from studyloom.views import (
    advice,
    drawing,
    halted_study,
    headline,
    page,
    parameter_sections,
    searched,
    words,
)
from studyloom.views.charts import Block
from studyloom.views.progress import STAGE_NAMES, Progress
from studyloom.views.worked_time import find_period, sum_worked_seconds
from studyloom.winner.result import Result

REPAIR = (
    "Fix the cause, open the failed trials again by this command, and run the study again as "
    "before, with study.accept_code_change=true if its code has changed:"
)


def make_head(
    stored: StoredStudy,
    progress: Progress,
    result: Result | None,
    trials: Sequence[FrozenTrial],
    figure: Block,
    parameters: parameter_sections.RankedParameters,
    run_dir: Path | None,
    *,
    is_live: bool = False,
) -> page.Head:
    """Makes the top of the report; a live report shows the times in a separate line.

    Args:
        trials: the trials of all stages.
        parameters: the hyperparameters, and how much they matter.
        figure: the first figure of the report, which the image to share contains.
        run_dir: the folder of the study, which the command to repair it names; None if unknown.
    """
    snapshot = progress.search
    blocks: list[Block] = []
    halt = halted_study.explain_halt(stored)
    repairs: list[advice.Advice] = []
    if halt is not None:
        text = halt.headline
        if snapshot.best is None:  # the headline says how many trials failed
            text = halt.reason
        blocks.append(page.Paragraph(text, "bad"))
        if run_dir is not None:
            repairs.append(advice.Advice(REPAIR, halted_study.write_redo(run_dir)))
    ending = snapshot.forecast.ending
    if ending is not None:
        blocks.append(page.Paragraph(f"The search {ending.reason}."))
    facts = (
        words.make_trials_fact(stored, snapshot),
        words.make_best_fact(stored, snapshot),
        make_winner_fact(progress, result),
        make_time_fact(progress, trials, is_live=is_live),
    )
    sentence = f"{headline.make_headline(snapshot, result, halt)}."
    sentences = advice.list_advice(stored, snapshot, result, parameters.importances)
    head = page.Head(
        name=stored.name,
        sentence=sentence,
        blocks=blocks,
        facts=facts,
        searched=searched.describe_searched(stored),
        advice=[*repairs, *sentences],
    )
    return replace(head, image=drawing.share(head, figure))


def make_winner_fact(progress: Progress, result: Result | None) -> words.Fact:
    """Says whether the best is real, or which stages lead to the winner."""
    if result is not None:
        return words.make_winner_fact(result)
    if progress.halted is not None:
        return words.Fact("Winner", "–", "none, since the study stopped itself")
    later_stages = []
    for stage in progress.stages[1:]:  # the first is the search
        later_stages.append(f"{STAGE_NAMES[stage.title]} {stage.done}/{stage.budget}")
    explanation = ", ".join(later_stages) or "no re-evaluation"
    return words.Fact("Winner", "–", f"not yet: {explanation}")


def make_time_fact(
    progress: Progress, trials: Sequence[FrozenTrial], *, is_live: bool
) -> words.Fact:
    """Says how long the trainings took; or while workers run, what they do.

    Args:
        trials: the trials of all stages.
        is_live: whether a live report shows the time left in a separate line.
    """
    duration = "–"
    explanation: list[str] = []
    period = find_period(trials)
    if period is not None:
        duration = format_duration(period.seconds)
        explanation.append(f"from {period.start:%Y-%m-%d %H:%M}")
    if progress.is_at_work:
        activity = progress.stage_names_text  # other facts have the counts of each stage
        if not is_live:
            activity += f"; {progress.eta_text}"
            if progress.control_text:
                activity += f"; {progress.control_text}"
        return words.Fact("Time so far", duration, activity)
    seconds = sum_worked_seconds(trials)
    if seconds:
        # The trials name processes, of which there are more than workers: some replaced others.
        explanation.append(f"workers busy for {format_duration(seconds)} in all")
    if not progress.has_ended:
        explanation.append("no worker runs")
    return words.Fact("Took", duration, "; ".join(explanation))
