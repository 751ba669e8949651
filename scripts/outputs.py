"""Writes what the commands print and the reports show of finished studies, to compare two versions.

    python scripts/outputs.py FOLDER RUN_DIR ...    # then: diff -r FOLDER OTHER_FOLDER

Each run directory is copied, so that nothing in it changes. Times that depend on the clock, and the
folder of the copy, are replaced.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = {
    "status": ("status",),
    "status.json": ("status", "--json"),
    "trials": ("trials",),
    "trials.json": ("trials", "--json"),
    "ask.json": ("ask", "--json"),
    "report": ("report",),
}
PAGES = (
    *("report.html", "winner.json", "winner.yaml", "winner.simple.yaml", "best.yaml"),
    "model_card.md",
)
STUDYLOOM = "import sys; from studyloom.cli import main; sys.exit(main(sys.argv[1:]))"
CLOCK = re.compile(r"\b\d+ (s|min|h|days?) ago\b|written \d{4}-\d\d-\d\d[ T][\d:.]+")


def main(folder: Path, runs: list[Path]) -> None:
    """Writes a file for each command and run, and the reports."""
    with tempfile.TemporaryDirectory() as temporary:
        copies = [Path(temporary) / run.name for run in runs]
        for run, copy in zip(runs, copies, strict=True):
            target = folder / run.name
            shutil.copytree(run, copy)
            target.mkdir(parents=True, exist_ok=True)
            for name, (verb, *options) in COMMANDS.items():
                printed = scrub(output_of(verb, str(copy), *options), temporary)
                (target / name).write_text(printed)
            for page in (
                "report.html",
                "winner.json",
                "winner.yaml",
                "best.yaml",
                "model_card.md",
                "winner.simple.yaml",
            ):
                if (copy / page).exists():
                    (target / page).write_text(scrub((copy / page).read_text(), temporary))
        for name, options in {"compare": (), "compare.json": ("--json",)}.items():
            printed = scrub(output_of("compare", *map(str, copies), *options), temporary)
            (folder / name).write_text(printed)


def output_of(*arguments: str) -> str:
    """Returns all that a command of `studyloom` prints, and its exit code."""
    command = [sys.executable, "-c", STUDYLOOM, *arguments]
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}exit code {done.returncode}\n"


def scrub(text: str, folder: str) -> str:
    """Replaces what differs between two runs of one version."""
    return CLOCK.sub("TIME", text.replace(folder, "FOLDER"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
