"""Takes the pictures of the README: a terminal and the report, after the main study.

    python scripts/screenshots.py            # into a temporary folder, and prints their paths
    python scripts/screenshots.py --write    # replaces the tracked pictures in .github

Runs the study first, if runs/mnist does not have its answer yet: a few minutes. Needs the test
extra and Chromium.
"""

import argparse
import html
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
TRACKED = ROOT / ".github"
TERMINAL = """<body style="margin:0;background:#16181d"><pre style="margin:0;padding:16px 20px;\
display:inline-block;color:#d8dbe2;font:14px/1.45 'DejaVu Sans Mono',monospace">{text}</pre></body>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes the pictures of the README.")
    about = "replace the tracked pictures in .github"
    parser.add_argument("--write", action="store_true", help=about)
    write = parser.parse_args().write
    folder = TRACKED if write else Path(tempfile.mkdtemp(prefix="studyloom-screenshots-"))
    text = run_study()
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(path for name in names if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shoot_terminal(browser, text, folder / "terminal.png")
        shoot_report(browser, folder / "report.png")
        browser.close()


def run_study() -> str:
    """Runs the study to its end, and returns what the command prints after that."""
    command = [sys.executable, "-m", "studies.mnist"]
    subprocess.run(command, cwd=ROOT, check=True)
    # Again, for a terminal of 80 columns and without the lines of progress.
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    return "$ python -m studies.mnist\n" + done.stdout.rstrip()


def shoot_terminal(browser: Browser, text: str, path: Path) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 600})
    page.set_content(TERMINAL.format(text=html.escape(text)))
    page.locator("pre").screenshot(path=path)
    print(path)


def shoot_report(browser: Browser, path: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 1250})
    page.goto((ROOT / "runs" / "mnist" / "report.html").as_uri())
    page.wait_for_timeout(1500)  # until plotly has drawn
    page.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    main()
