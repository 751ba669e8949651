"""The pictures in the README: a terminal and the report, after the main job.

    python scripts/screenshots.py            # runs it first, if runs/mnist is not there yet

Needs the test extra and Chromium.
"""

import html
import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / ".github"
TERMINAL = """<body style="margin:0;background:#16181d"><pre style="margin:0;padding:16px 20px;display:inline-block;
color:#d8dbe2;font:14px/1.45 'DejaVu Sans Mono',monospace">{text}</pre></body>"""


def main() -> None:
    command = [sys.executable, "-m", "studies.mnist"]
    subprocess.run(command, cwd=ROOT, check=True)
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    shown = "$ python -m studies.mnist\n" + done.stdout.rstrip()
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(found for name in names if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.set_content(TERMINAL.format(text=html.escape(shown)))
        page.locator("pre").screenshot(path=PICTURES / "terminal.png")
        page = browser.new_page(viewport={"width": 1000, "height": 1250})
        page.goto((ROOT / "runs" / "mnist" / "report.html").as_uri())
        page.wait_for_timeout(1500)  # plotly draws
        page.screenshot(path=PICTURES / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
