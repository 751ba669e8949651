"""Measures the report of a study in Chromium, and the live report that follows a search.

    python scripts/pages.py                  # 1,000 trials that were never trained
    python scripts/pages.py --trials 2000    # as many as a report shows; 60 have another limit
    python scripts/pages.py --shots FOLDER   # and images, at 1280 and 390 pixels, light and dark

Prints a line for each figure, with its limit, and ends with 1 if one is beyond it. Needs the extra
test and Chromium.
"""

import argparse
import itertools
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from browsers import start_chromium
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from playwright.sync_api import Browser, CDPSession, Page

from studyloom.storage import attributes
from studyloom.storage.opening import create_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.views.dashboard import application, bind
from studyloom.views.report import write_report

BEGAN = datetime(2026, 1, 1, 12)
EPOCHS, WORKERS, UPDATES = 20, 4, 8
KINDS = ("checkpoints", "evaluation", "other", "sampling", "storage")  # of a trial's seconds
CHOICES = {
    "model": ["mlp", "cnn"],
    "optimizer": ["sgd", "adamw"],
    "train.batch_size": [32, 64, 128, 256],
    "model.cnn.channels": [8, 16, 32],
}
NUMBERS = {
    "model.mlp.hidden.0": IntDistribution(16, 512, log=True),
    "model.mlp.dropout": FloatDistribution(0.0, 0.5),
    "optimizer.sgd.lr": FloatDistribution(1e-3, 1.0, log=True),
    "optimizer.adamw.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "optimizer.adamw.weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
}
TIMED = """() => {
  const began = performance.now();
  lead("7");
  return performance.now() - began;
}"""
OVERLAPPING = """() => [...document.querySelectorAll(".plot")].filter((plot) =>
  [".x-label", ".y-label"].some((kind) => {
    const boxes = [...plot.querySelectorAll(kind)].map((e) => e.getBoundingClientRect())
      .filter((box) => box.width);
    return boxes.some((a, n) => boxes.slice(n + 1).some((b) =>
      a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1));
  })).length"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the report of a study in Chromium.")
    parser.add_argument("--trials", type=int, default=1000, help="of the study (default: 1000)")
    parser.add_argument("--shots", type=Path, help="a folder for images")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="studyloom-pages-") as name,
        start_chromium() as browser,
    ):
        folder = Path(name)
        stored = make_study(folder, arguments.trials - UPDATES)
        with served(stored, folder) as address:
            figures = measure(browser, stored, address)
            if arguments.shots is not None:
                shoot(browser, address, arguments.shots)
        report = write_report(stored, folder)
        size = 0.25 if arguments.trials <= 60 else 3.0
        figures.append(("report.html", report.stat().st_size / 1e6, size, "MB"))
        figures += look(browser, report.as_uri(), arguments.shots)
    late = False
    for what, value, limit, unit in figures:
        late |= value > limit
        print(f"{what:44} {value:8.3f} {unit:3} (limit {limit:g})")
    sys.exit(int(late))


def make_study(folder: Path, count: int) -> StoredStudy:
    """Stores a study of trials that were never trained: complete, pruned and failed."""
    url = f"sqlite:///{folder / 'study.db'}"
    stored = create_study(url, "digits", {"of": "nothing"}, count + UPDATES)
    generator = random.Random(0)
    for number in range(count):
        stored.storage.create_new_trial(stored.ledger.study_id, made(number, generator))
    stored.ledger.compare(repair=True)
    return stored


def made(number: int, generator: random.Random) -> FrozenTrial:
    """Makes a trial whose curve follows from its hyperparameters, and some chance."""
    params = {name: generator.choice(CHOICES[name]) for name in [*CHOICES][:3]}
    for name in [*CHOICES][3:]:
        if name.split(".")[1] == params[name.split(".")[0]]:
            params[name] = generator.choice(CHOICES[name])
    for name, each in NUMBERS.items():
        group, option, _ = name.split(".", 2)
        if params[group] == option:
            low, high = (math.log(end) if each.log else end for end in (each.low, each.high))
            drawn = generator.uniform(low, high)
            value = math.exp(drawn) if each.log else drawn
            params[name] = round(value) if isinstance(each, IntDistribution) else value
    rate = next(value for name, value in params.items() if name.endswith("lr"))
    top = 0.97 - 0.05 * (params["model"] == "mlp") - 0.02 * (math.log10(rate) + 2.5) ** 2
    top += generator.gauss(0, 0.004)
    values = [top - 0.4 * math.exp(-epoch / 3) for epoch in range(1, EPOCHS + 1)]
    pruned = number > 5 and generator.random() < 0.45
    values = values[: generator.choice([1, 2, 4, 8])] if pruned else values
    curve = {
        "number": [*range(1, len(values) + 1)],
        "value": values,
        "train_loss": [1 - value for value in values],
        "valid_loss": [1.05 - value for value in values],
    }
    stored = {
        attributes.SLOT: number,
        attributes.WORKER: f"node{number % WORKERS}:100{number % WORKERS}",
        attributes.EPOCHS: curve,
        attributes.TIMES: dict.fromkeys(KINDS, 0.0123) | {"training": float(len(values))},
        attributes.PLANNED_EPOCHS: EPOCHS,
        attributes.PROVENANCE: {"config": {}},
    } | ({attributes.BASELINE: True} if number == 0 else {})
    trial = create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=None if pruned else values[-1],
        params=params,
        distributions={
            name: CategoricalDistribution(CHOICES[name]) if name in CHOICES else NUMBERS[name]
            for name in params
        },
        intermediate_values=dict(enumerate(values, 1)),
        user_attrs=stored,
    )
    trial.datetime_start = BEGAN + timedelta(seconds=number // WORKERS * EPOCHS)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=0.95 * len(values))
    return trial


@contextmanager
def served(stored: StoredStudy, folder: Path) -> Iterator[str]:
    """Serves a study as `studyloom dashboard` does, and yields its address."""
    with bind(0) as server:
        server.set_app(application(stored, folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        yield address
        server.shutdown()


def look(browser: Browser, address: str, shots: Path | None) -> list[tuple[str, Any, Any, str]]:
    """Opens the report at each width, light and dark; draws a rectangle, and opens a trial.

    Returns:
        Each figure with its limit and unit: the largest of the four.
    """
    seen: list[str] = []
    first, brush, opened, wrong = [], [], [], 0
    for width, scheme in itertools.product((1280, 390), ("light", "dark")):
        height = 900 if width > 390 else 844
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and seen.append("out"))
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        page.goto(address)
        first.append(1000 * _scripting(devtools))
        wrong += page.evaluate("document.documentElement.scrollWidth") > width
        wrong += page.evaluate(OVERLAPPING)
        plot = page.locator("#search .plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        before = _scripting(devtools)
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 3)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 90)
        page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] - 3)
        page.mouse.up()
        brush.append(1000 * (_scripting(devtools) - before))
        name = f"{width}-{scheme}.png"
        if shots is not None:
            shots.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=shots / f"brush-{name}", full_page=True)
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)
        opened.append(page.evaluate(TIMED))
        if shots is not None:
            page.screenshot(path=shots / f"trial-{name}")
        page.close()
    return [
        ("the report's first paint: scripting", max(first), 100, "ms"),
        ("a rectangle in the history: scripting", max(brush), 100, "ms"),
        ("one trial: scripting and layout", max(opened), 100, "ms"),
        ("its console lines, and requests to outside", len(seen), 0, ""),
        ("its overlapping labels, or a report too wide", wrong, 0, ""),
    ]


def measure(browser: Browser, stored: StoredStudy, address: str) -> list[tuple[str, Any, Any, str]]:
    """Opens the live report, lets trials end, and returns each figure with its limit and unit."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    devtools = page.context.new_cdp_session(page)
    received = [0]
    devtools.send("Network.enable")
    devtools.send("Performance.enable")
    devtools.on("Network.dataReceived", lambda data: _add(received, data["dataLength"]))
    began = time.perf_counter()
    page.goto(address, wait_until="domcontentloaded")
    page.locator("h1").wait_for()
    loaded = time.perf_counter() - began
    paint = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1"
    )
    first = received[0]
    scripting = [update(page, devtools, stored) for _ in range(UPDATES)]
    own, all_ = (sorted(times) for times in zip(*scripting, strict=True))
    narrow = 0
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(300)
        narrow += page.evaluate("document.documentElement.scrollWidth") > width
        narrow += page.evaluate(OVERLAPPING)
    page.close()
    return [
        ("first content, by the browser's clock", paint / 1000, 1.5, "s"),
        ("first content, with the navigation", loaded, 1.5, "s"),
        ("the report", first / 1e6, 3.0, "MB"),
        (f"all of it, with {UPDATES} updates", received[0] / 1e6, 3.0, "MB"),
        ("an update: our script, median", own[len(own) // 2], 100, "ms"),
        ("an update: our script, the longest", own[-1], 100, "ms"),
        ("an update: all scripting, the longest", all_[-1], 100, "ms"),
        ("console errors and warnings", len(errors), 0, ""),
        ("overlapping labels, or a report too wide", narrow, 0, ""),
    ]


def _add(total: list[int], more: int) -> None:
    total[0] += more


def update(page: Page, devtools: CDPSession, stored: StoredStudy) -> tuple[float, float]:
    """Adds a trial, and waits until the report shows it.

    Returns:
        The milliseconds of our script, and of all scripting since the trial was added.
    """
    number = len(stored.trials())
    before, seen = _scripting(devtools), _updates(page)
    trial = made(number, random.Random(number))
    stored.storage.create_new_trial(stored.ledger.study_id, trial)
    page.locator(f"#trial-{number}").wait_for(state="attached", timeout=60_000)
    own = page.evaluate("performance.getEntriesByName('update').map((entry) => entry.duration)")[
        seen:
    ]
    return max(own), 1000 * (_scripting(devtools) - before)


def _updates(page: Page) -> int:
    return int(page.evaluate("performance.getEntriesByName('update').length"))


def _scripting(devtools: CDPSession) -> float:
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == "ScriptDuration"))


def shoot(browser: Browser, address: str, folder: Path) -> None:
    """Takes a screenshot of the report at each width, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(address)
            page.wait_for_timeout(500)
            page.screenshot(path=folder / f"live-{width}-{scheme}.png", full_page=True)
            page.close()


if __name__ == "__main__":
    main()
