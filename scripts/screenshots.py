"""Takes the images of README and guides: a terminal, the live report, a notebook, and reports.

    python scripts/screenshots.py            # into a temporary folder, and prints their paths
    python scripts/screenshots.py --write    # replaces the tracked images in .github
    python scripts/screenshots.py gallery runs --write    # those of the gallery, in .github/gallery
    python scripts/screenshots.py notebook --write    # that of the guides, in .github/site/docs

The first two run the study, if runs/mnist does not have its result yet: a few minutes. `gallery`
runs nothing: it takes the result and one figure of each report that is in runs/STUDY, in seconds,
and ends with 1 if a study has none. `notebook` executes the example of the README in a notebook, in
half a minute, and needs nbconvert too. Needs the test extra and Chromium.
"""

import argparse
import html
import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from browsers import start_chromium
from PIL import Image
from playwright.sync_api import Browser

from studyloom.storage.opening import open_study
from studyloom.views.dashboard import application, bind

ROOT = Path(__file__).resolve().parent.parent
TRACKED = ROOT / ".github"
TERMINAL = """<body style="margin:0;background:#16181d"><pre style="margin:0;padding:16px 20px;\
display:inline-block;color:#d8dbe2;font:14px/1.45 'DejaVu Sans Mono',monospace">{text}</pre></body>
"""
# The section or part of each study's report that says most of it, shown below its result.
GALLERY = {
    "mnist": "misled",
    "rows": "curves",
    "breast_cancer": "columns",
    "sunspots": "winner",
    "pareto": "front",
    "photos": "misled",
    "digits_spoken": "winner",
    "reviews": "words",
    "seen_and_heard": "winner",
    "newsgroups": "curves",
    "ratings": "search",
    "language": "curves",
    "autoencoder": "front",
    "cartpole": "search",
    "fashion": "search",
}
# What such an image shows of the report: the result, four facts, one section or part of one, and of
# what has several parts the first two, of a long table the first rows.
ALONE = """
nav, footer, #image, .skip, .behind, main > section:not(#{key}, :has(#{key})),
section:has(#{key}) > .part:not(#{key}), section > h3:nth-of-type(n+3),
section > h3:nth-of-type(n+3) ~ *, #{key} > h4:nth-of-type(n+3), #{key} > h4:nth-of-type(n+3) ~ *,
tbody > tr:nth-child(n+13) {{ display: none }}
body {{ padding: 20px }} section {{ margin-top: 16px }}
"""
WIDTH, TALLEST = 800, 1000  # pixels of an image of the gallery
MOST = 60_000  # bytes of one
MOST_OF_NOTEBOOK = 120_000  # bytes of its image
COLOURS = (256, 128, 64, 32, 16)  # as many as its size allows


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes the images of the README.")
    about = "replace the tracked images in .github"
    parser.add_argument("--write", action="store_true", help=about)
    about = "gallery: those of the run directories below RUNS; notebook: that of a notebook"
    parser.add_argument("what", nargs="*", metavar="gallery RUNS | notebook", help=about)
    options = parser.parse_args()
    what, *runs = options.what or [""]
    if len(runs) != {"": 0, "notebook": 0, "gallery": 1}.get(what):
        parser.error(f"must be nothing, notebook, or gallery RUNS; got {' '.join(options.what)}")
    folder = TRACKED if options.write else Path(tempfile.mkdtemp(prefix="studyloom-screenshots-"))
    text = "" if what else run_study()
    missing = list[str]()
    with start_chromium() as browser:
        if what == "gallery":
            missing = shoot_gallery(browser, Path(runs[0]), folder / "gallery")
        elif what:
            docs = folder / "site" / "docs"
            docs.mkdir(parents=True, exist_ok=True)
            shoot_notebook(browser, docs / "notebook.png")
        else:
            shoot_terminal(browser, text, folder / "terminal.png")
            shoot_page(browser, folder / "report.png")
    for line in missing:
        print(line, file=sys.stderr)
    return 1 if missing else 0


def shoot_gallery(browser: Browser, runs: Path, folder: Path) -> list[str]:
    """Takes a screenshot of each study that has a report.

    Args:
        browser: Chromium.
        runs: a run directory of each study is below it, with the name of the study.
        folder: for the images.

    Returns:
        a line for each study that has none.
    """
    folder.mkdir(exist_ok=True)
    missing = []
    for name, key in GALLERY.items():
        report, path = (runs / name / "report.html").resolve(), folder / f"{name}.png"
        if not report.is_file():
            missing.append(f"{name}: no {report}; python -m studies.{name} run_dir={report.parent}")
            continue
        page = browser.new_page(viewport={"width": WIDTH, "height": 400}, color_scheme="light")
        page.goto(report.as_uri())
        if page.locator(f"#{key}").count() == 0:
            missing.append(f"{name}: {report} has no section {key}")
            page.close()
            continue
        page.add_style_tag(content=ALONE.format(key=key))
        tall = page.evaluate("document.documentElement.scrollHeight")
        size = {"x": 0, "y": 0, "width": WIDTH, "height": min(tall, TALLEST)}
        content = page.screenshot(full_page=True, clip=size)
        page.close()
        path.write_bytes(small(content))
        print(path)
    return missing


def shoot_notebook(browser: Browser, path: Path) -> None:
    """Takes a screenshot of a notebook that has executed the first example of the README."""
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_code_cell, new_notebook

    example = (ROOT / "README.md").read_text().split("```python\n")[1].split("print(")[0].strip()
    sources = [example, "study", "study.winner", "study.winner.predict(inputs[0])"]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the kernel: tqdm misses a widget
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
        html, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    page = browser.new_page(viewport={"width": 1000, "height": 400}, color_scheme="light")
    page.route("**/*", lambda route: route.abort())  # scripts that it does not need
    page.set_content(html)
    path.write_bytes(small(page.locator("main").screenshot(), MOST_OF_NOTEBOOK))
    page.close()
    print(path)


def small(content: bytes, most: int = MOST) -> bytes:
    """Returns an image in as many colors as it may have within `most` bytes."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    for colors in COLOURS:
        file = io.BytesIO()
        image.quantize(colors, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= most:
            break
    return file.getvalue()


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


def shoot_page(browser: Browser, path: Path, run_dir: Path = ROOT / "runs" / "mnist") -> None:
    stored = open_study(f"sqlite:///{run_dir / 'study.db'}", "mnist")
    app = application(stored, run_dir)
    with bind(0) as server:
        server.set_app(app)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page(viewport={"width": 1000, "height": 1250})
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.locator("main > section").first.wait_for()
        page.screenshot(path=path)
        page.close()
        server.shutdown()
    print(path)


if __name__ == "__main__":
    sys.exit(main())
