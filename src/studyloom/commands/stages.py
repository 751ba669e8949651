"""The stages of a study's run, from its search to its winner, as commands open them."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from studyloom.config.schema import WinnerSection
from studyloom.errors import ConfigError
from studyloom.launch.search import open_search, prepare
from studyloom.launch.task import Prepared
from studyloom.study.opening import check_definition
from studyloom.study.stage import Stage
from studyloom.study.stopping import Stop
from studyloom.winner.stages import ResultStages


def result_stages(prepared: Prepared, search: Stage) -> ResultStages:
    """Makes the stages that follow a search, as the config's section `winner` says."""
    definition = prepared.definition
    settings = WinnerSection(**definition.config.winner)
    return ResultStages(search, definition, prepared.data, prepared.url, prepared.run_dir, settings)


@contextmanager
def open_ended(cfg: DictConfig, stop: Stop) -> Iterator[tuple[Prepared, ResultStages]]:
    """Opens a study whose search has ended and whose definition is the config's, and closes it.

    Raises:
        ValueError: it has not, or the config or the database cannot be used.
    """
    prepared = prepare(cfg, joins=True)
    with open_search(prepared, stop, result_stages, create=False) as (prepared, plan):
        stored, trials = plan.search.stored, plan.search.trials
        now = prepared.definition.identity(prepared.data.digest)
        check_definition(stored.name, stored.definition(), now)
        if left := plan.search.todo():
            ways = "run the study to its end, or with a smaller study.trials"
            raise ConfigError(f"{plan.run_dir}: {left} of {trials} trials are open; {ways}")
        yield prepared, plan
