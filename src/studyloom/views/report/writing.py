"""report.html: what a study has found so far, on one page that needs no other file.

The report can be written while the search runs; what cannot be drawn yet is replaced by a sentence
that says why.
"""

from os.path import lexists
from pathlib import Path
from typing import Any

from studyloom.extras.export.record import read_record
from studyloom.files import read_below, write_whole
from studyloom.study.stored_study import StoredStudy
from studyloom.views.report.page import report_page
from studyloom.views.report.sections import read_report
from studyloom.winner.answer import belongs_to, read_answer

SHOWN_CONFIGS = ("best.yaml", ".hydra/config.yaml")  # below the run directory


def write_report(stored: StoredStudy, run_dir: Path) -> Path:
    """Writes report.html of the study that runs in a folder.

    Returns:
        The path of the report.

    Raises:
        OSError: the folder cannot be written to.
    """
    page = render(stored, *read_files(stored, run_dir))
    path = run_dir / "report.html"
    write_whole(path, page.encode(errors="replace"))
    return path


def read_files(stored: StoredStudy, run_dir: Path) -> tuple[dict[str, Any] | None, str]:
    """Reads what a report shows of a run directory.

    Returns:
        What winner.json holds, None if it is not of this study; and the configurations, as text.

    Raises:
        OSError: a file cannot be read.
    """
    configs = {name: read_below(run_dir, name) for name in SHOWN_CONFIGS if lexists(run_dir / name)}
    texts = {name: content.decode(errors="replace").rstrip() for name, content in configs.items()}
    config_text = "\n\n".join(f"# {name}\n{text}\n" for name, text in texts.items())
    answer = read_answer(run_dir) or {}  # it may be that of another study which ran here
    answer["compressed"] = read_record(run_dir, answer)
    return answer if belongs_to(answer, stored) else None, config_text


def render(stored: StoredStudy, winner: dict[str, Any] | None, config_text: str) -> str:
    """Renders the page as HTML.

    Args:
        stored: the study.
        winner: what winner.json holds, None if there is none; any key may be missing.
        config_text: the configurations to show, as text.
    """
    return report_page(*read_report(stored, winner, config_text))
