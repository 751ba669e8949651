"""The report of a study: sections of blocks, which the templates turn into HTML.

It can be written while the search runs; a sentence replaces a figure that cannot be drawn yet. To
add a section, yield it in `read_report`, and add its words to assets/report/sections.toml.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from studyloom.errors import StudyloomError, UndrawnReport
from studyloom.files import write_whole
from studyloom.storage.stored_study import StoredStudy
from studyloom.views import (
    failure_section,
    page,
    parameter_sections,
    proposers_section,
    report_head,
    result_sections,
    search_sections,
    trials_section,
    worker_sections,
)
from studyloom.views.axes import Axis
from studyloom.views.explanations import render_explanations
from studyloom.views.progress import Progress
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.sampled_study import sample_trials
from studyloom.views.snapshot import Snapshot
from studyloom.views.trial_values import last_values
from studyloom.views.worked_time import collect_trials_of_stages
from studyloom.winner.result import Result

CONFIGS = ("best.yaml", ".hydra/config.yaml")  # below the run directory, that a report shows
FIRST_SECTIONS = ("search", "front")  # one of them is on the first screen
EXPLAINED_SECTIONS = ("importances", "winner")  # they say why they are empty


def read_configs(run_dir: Path) -> str:
    """Reads the configurations below a run directory; raises OSError if one cannot be read."""
    texts = []
    for name in CONFIGS:
        path = run_dir / name
        if path.exists():
            texts.append(f"# {name}\n{path.read_text(errors='replace').rstrip()}\n")
    return "\n\n".join(texts)


@dataclass(frozen=True)
class Report:
    """The top of a report and its sections, which are rendered when they are read."""

    head: page.Head
    sections: Iterator[page.Section]


@dataclass(frozen=True)
class _ReportSource:
    """The data from which the sections of a report are rendered.

    Args:
        stored: the study with all of its trials.
        drawn: the study with the trials that its figures show.
        note: a sentence that says which trials these are; empty if they are all.
        axis: the axis of the metric.
        parameters: the hyperparameters of all trials, and how much they matter.
        configs: the configurations, from `read_configs`.
        run_dir: where the logs are, if known.
    """

    stored: StoredStudy
    drawn: StoredStudy
    note: str
    progress: Progress
    result: Result | None
    axis: Axis
    parameters: parameter_sections.RankedParameters
    configs: str
    run_dir: Path | None

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot of the search."""
        return self.progress.search

    @property
    def has_failed(self) -> bool:
        """Returns whether failures are all that the search has come to."""
        return self.snapshot.best is None and self.snapshot.outcomes.get("failed", 0) > 0

    @property
    def winner_number(self) -> int | None:
        """The number of the winner's trial in the search; None without a winner."""
        if self.result is None:
            return None
        return self.result.winner.trial

    def is_worth_showing(self, section: page.Section) -> bool:
        """Returns whether a section has something to show, or a reason why it does not.

        A search that has only failures shows no section that says what is missing. Before a trial
        has a value, only the first section says so.
        """
        if not section.is_absent or section.has_error:
            return True
        if self.has_failed:
            return False
        if self.snapshot.best is None:
            return section.key in FIRST_SECTIONS
        key, _, _ = section.key.partition("-")  # the importances for a cost have a number
        return key in (*FIRST_SECTIONS, *EXPLAINED_SECTIONS)

    def render_search(self) -> list[page.Section]:
        """Renders the figures of the search, which a report always needs."""
        sections = search_sections.render_search(self.drawn, self.snapshot, self.result, self.axis)
        return [*_add_note(sections, self.note)]

    def render_sections(self, search_figures: Sequence[page.Section]) -> Iterator[page.Section]:
        """Renders the sections one after the other, when they are needed: some take seconds.

        Args:
            search_figures: the figures of the search, of which the first are on the first screen.
        """
        first_count = 1
        if self.snapshot.costs:  # the Pareto front comes before the history
            first_count = 2
        failures = failure_section.render_failures(self.stored, opens_traceback=self.has_failed)
        if self.has_failed:
            yield failures
        first_section, *next_sections = search_figures[:first_count]
        bars = parameter_sections.make_bars(self.stored, self.parameters)
        yield replace(first_section, blocks=[*first_section.blocks, *bars])
        yield from next_sections
        yield from worker_sections.render_running(self.progress.current)
        yield result_sections.render_details(self.stored, self.snapshot, self.result)
        if self.result is not None:
            yield from result_sections.render_candidates(self.result)
        yield from search_figures[first_count:]
        yield from proposers_section.render_proposers(self.stored, self.result)
        yield worker_sections.render_workers(self.stored, self.snapshot)
        effects = parameter_sections.render_parameters(
            self.drawn, self.snapshot.best, self.axis, self.parameters
        )
        yield from _add_note(effects, self.note)
        if self.result is not None:
            yield from result_sections.render_predictions(self.result)
            yield from render_explanations(self.result)
        if not self.has_failed:
            yield failures
        trials = trials_section.render_trials(
            self.drawn, self.snapshot, self.winner_number, self.parameters.shares, self.run_dir
        )
        yield from _add_note([trials], self.note)
        yield worker_sections.render_environment(self.stored.trials(), self.result, self.configs)


def read_report(
    stored: StoredStudy,
    result: Result | None = None,
    configs: str = "",
    progress: Progress | None = None,
    run_dir: Path | None = None,
) -> Report:
    """Reads a study, and returns its report.

    Args:
        result: the result of the study, if there is one.
        configs: the configurations, from `read_configs`.
        progress: the progress of all stages, for a live report.
        run_dir: where the logs are, if known.
    """
    is_live = progress is not None
    if progress is None:
        progress = ProgressReader(stored).read()
    values = last_values(stored.trials()).values()
    source = _ReportSource(
        stored=stored,
        drawn=stored,
        note="",
        progress=progress,
        result=result,
        axis=Axis.choose(stored.metric, stored.sign, values),
        parameters=parameter_sections.rank_parameters(stored),
        configs=configs,
        run_dir=run_dir,
    )
    # The figures of a large study draw only a sample of its trials.
    sampled = sample_trials(stored, progress.search, source.winner_number)
    if sampled is not None:
        source = replace(source, drawn=sampled, note=sampled.note)
    search_figures = source.render_search()
    trials = collect_trials_of_stages(stored)
    first_figure = search_figures[0].blocks[0]
    head = report_head.make_head(
        stored,
        progress,
        result,
        trials,
        first_figure,
        source.parameters,
        run_dir,
        is_live=is_live,
    )
    sections = source.render_sections(search_figures)
    return Report(head, filter(source.is_worth_showing, sections))


def _add_note(sections: Iterable[page.Section], note: str) -> Iterator[page.Section]:
    """Adds a note to the captions of some sections."""
    for section in sections:
        yield replace(section, caption=f"{section.caption} {note}".strip())


def write_report(
    stored: StoredStudy,
    run_dir: Path,
    folder: Path | None = None,
    *,
    draw_png: Callable[[str], bytes] | None = None,
) -> Path:
    """Writes report.html of the study that runs in a folder.

    Args:
        folder: where to write it; None for `run_dir`, which holds the winner and the logs.
        draw_png: draws an SVG, see `extras/image.py`; the top of the report is written as
            report.png too. None for no image.

    Raises:
        ConfigError: what draws the image is not installed.
        OSError: it cannot be written.
        UndrawnReport: it cannot be drawn, for any reason.
    """
    path = (folder or run_dir) / "report.html"
    result = Result.read(run_dir, stored)
    configs = read_configs(run_dir)
    replay_dir = None  # a trial can be replayed where the configurations are
    if configs:
        replay_dir = run_dir
    try:
        report = read_report(stored, result, configs, run_dir=run_dir)
        html = page.render_report(report.head, report.sections, replay_dir)
        if draw_png is not None:
            write_whole(path.with_suffix(".png"), draw_png(report.head.image))
    except (StudyloomError, OSError):
        raise
    except Exception as error:  # a study that has ended does not fail because of its report
        reason = page.describe_drawing_error(error)
        raise UndrawnReport(f"{path} is not written: {reason}") from error
    write_whole(path, html.encode(errors="replace"))
    return path
