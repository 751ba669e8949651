"""What is wrong with `compress` of a config, found before trial 0."""

from collections.abc import Iterator

from studyloom.config.values import value_at
from studyloom.data.training_data import TrainingData
from studyloom.errors import CompressError, ConfigError, UserError
from studyloom.extras.export.export import check_installed
from studyloom.extras.export.settings import (
    COMMITTEE,
    SECTION,
    Settings,
    parse_own_rule,
    settings_of,
)
from studyloom.question.question import FunctionQuestion, Question

LEAVE_OUT = f"or leave {SECTION} out"


def find_mistakes(question: Question, data: TrainingData | None) -> Iterator[str]:
    """Yields the mistakes in how the winner is to be made small; none if it is not to be.

    Args:
        question: of the study.
        data: of the study; None if they cannot be loaded.
    """
    settings: Settings | None = None
    try:
        settings = settings_of(value_at(question.config, SECTION))
        if settings is None:
            return
    except ConfigError as error:
        yield from error.mistakes
    try:
        check_installed()
    except CompressError as error:
        yield str(error)
    yield from _check_winner(question, settings or Settings())
    split = None if data is None else data.split
    if isinstance(question, FunctionQuestion) or split is None:
        return
    if split.shape is None or split.input_at(0) is None:
        yield (
            f"{SECTION} writes a network of one input, and an input of the data is not one tensor; "
            f"deploy winner.pt, and leave {SECTION} out"
        )


def _check_winner(question: Question, settings: Settings) -> Iterator[str]:
    config = question.config
    if not config.winner.enabled:
        yield (
            f"{SECTION} makes the winner small, and with winner.enabled=false there is none; set "
            f"winner.enabled=true, {LEAVE_OUT}"
        )
    if isinstance(question, FunctionQuestion):
        yield (
            f"{SECTION} makes a network small that studyloom trains, and objective._target_="
            f"{config.objective['_target_']} is a loop of your own; leave {SECTION} out, and do it "
            "with what the loop keeps"
        )
        return
    if settings.teacher == COMMITTEE and not config.winner.committee:
        yield (
            f"{SECTION}.teacher={COMMITTEE} learns from the committee of winner.committee=true, "
            f"which is false; set winner.committee=true, or {SECTION}.teacher=winner"
        )
    try:
        metric = question.metric
    except (UserError, ImportError, AttributeError):  # which is reported with the objective
        return
    try:
        parse_own_rule(metric, settings, f"{SECTION}.rule")
    except ConfigError as error:
        yield from error.mistakes
