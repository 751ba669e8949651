"""Chromium, for images and for measurements of reports."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def start_chromium() -> Iterator[Browser]:
    """Ends the script if there is none."""
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
