"""Takes the images of README, guides and gallery, and records what commands print.

    python scripts/screenshots.py site runs --write       # those of README and site
    python scripts/screenshots.py gallery runs --write    # those of the gallery, in .github/gallery
    python scripts/screenshots.py notebook --write        # that of the guides, in .github/site/docs

Without `--write` they go into a temporary folder, whose paths are printed.

`site` needs the finished studies runs/mnist and runs/pareto, of `python -m studies.mnist` and
`python -m studies.pareto`, a minute or two each. It makes runs/digits by the first program of the
README, and runs/optuna.db by Optuna, if they are missing. `gallery` runs nothing: it takes the
result and one figure of each report in runs/STUDY, and ends with 1 if a study has none. `notebook`
executes the example of the README in a notebook, in half a minute, and needs nbconvert too. All of
them need the test extra and Chromium.
"""

import argparse
import io
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

from browsers import start_chromium
from PIL import Image
from playwright.sync_api import Browser
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
TRACKED = ROOT / ".github"
TERMINAL = """<body style="margin:0;background:#16181d"><pre style="margin:0;padding:16px 20px;\
width:80ch;white-space:pre-wrap;color:#d8dbe2;font:15px/1.45 'DejaVu Sans Mono',monospace">\
{code}</pre></body>
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
SECTION_ALONE = (
    "header { display: none } section, section:has(.part) { border: 0; margin: 0; padding: 0 }"
)
# Replaces the name of the machine in the ids of workers, such as `name-f00d:4711 · 2% idle`.
HIDE_HOST = r"""() => {
  for (const element of document.querySelectorAll("#workers .words")) {
    element.textContent = element.textContent.replace(/^\S+(?=:\d+ · )/, "host");
  }
}"""
WIDTH, HEIGHT = 800, 940  # pixels of each image of the gallery, so that its cards are equal
SCALE = 2  # pixels of an image for each pixel of the page, so that letters are sharp
FIRST_SCREEN = {"width": 1000, "height": 900}  # pixels of the page
SECTION_WIDTH = 860
# The images of sections of a report: the name of each, the study, and the section or part.
SECTIONS = {
    "history": ("mnist", "search"),
    "curves": ("mnist", "curves"),
    "slices": ("mnist", "slices"),
    "misled": ("mnist", "misled"),
    "workers": ("digits", "workers"),
    "front": ("pareto", "front"),
}
TALLEST_SECTION = 660
MOST = 60_000  # bytes of an image of the gallery
MOST_OF_SECTION = 80_000
MOST_OF_PAGE = 160_000  # bytes of a first screen, and of the notebook
COLOURS = (256, 128, 64, 32, 16)  # as many as its size allows
# The commands whose output the reference shows; each gets the folder of the study of digits.
COMMANDS = ("status", "trials", "doctor", "ask")
LONGEST_OUTPUT = 16  # lines of such an output
HOME = "/data"  # the folder of a user, in such an output
OPTUNA = """
import numpy
import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

inputs, targets = load_digits(return_X_y=True)
train, test, labels, truth = train_test_split(inputs / 16, targets, random_state=0)


def objective(trial):
    net = MLPClassifier(
        (trial.suggest_int("width", 8, 128, log=True),),
        learning_rate_init=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        alpha=trial.suggest_float("alpha", 1e-6, 1e-1, log=True),
        random_state=trial.number,
    )
    generator = numpy.random.default_rng(trial.number)
    for epoch in range(12):
        for part in numpy.array_split(generator.permutation(len(train)), len(train) // 64):
            net.partial_fit(train[part], labels[part], classes=range(10))
        accuracy = net.score(test, truth)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


sampler = optuna.samplers.TPESampler(seed=1)
pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
study = optuna.create_study(
    storage="sqlite:///optuna.db",
    study_name="digits",
    direction="maximize",
    sampler=sampler,
    pruner=pruner,
)
study.optimize(objective, n_trials=50)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes the images of the documents.")
    about = "replace the tracked images in .github"
    parser.add_argument("--write", action="store_true", help=about)
    about = "site or gallery: those of the run directories below RUNS; notebook: that of a notebook"
    parser.add_argument(
        "what", nargs="+", metavar="site RUNS | gallery RUNS | notebook", help=about
    )
    options = parser.parse_args()
    what, *runs = options.what
    if len(runs) != {"site": 1, "notebook": 0, "gallery": 1}.get(what):
        usage = "must be site RUNS, gallery RUNS or notebook"
        parser.error(f"{usage}; got {' '.join(options.what)}")
    folder = TRACKED
    if not options.write:
        folder = Path(tempfile.mkdtemp(prefix="studyloom-screenshots-"))
    images = folder / "site" / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    missing = list[str]()
    with start_chromium() as browser:
        if what == "gallery":
            missing = shoot_gallery(browser, Path(runs[0]), folder / "gallery")
        elif what == "notebook":
            shoot_notebook(browser, images / "notebook.png")
        else:
            missing = shoot_site(browser, Path(runs[0]).resolve(), images)
            outputs = folder / "site" / "outputs"
            outputs.mkdir(exist_ok=True)
            record_outputs(Path(runs[0]).resolve(), outputs)
    for line in missing:
        print(line, file=sys.stderr)
    if missing:
        return 1
    return 0


# README and site


def shoot_site(browser: Browser, runs: Path, folder: Path) -> list[str]:
    """Takes the images of README and site.

    Args:
        browser: Chromium.
        runs: the folder of the run directories.
        folder: for the images.

    Returns:
        a line for each report or section that is missing.
    """
    missing = []
    if not (runs / "digits" / "report.html").exists():
        run_program(example_of_the_readme(), runs.parent)
    for name in ("digits", "mnist", "pareto"):  # as this version draws them
        if (runs / name).exists():
            subprocess.run(["studyloom", "report", runs / name], check=True)
    shoot_terminal(browser, run_again(runs), folder / "terminal.png")
    for image, name in (("report", "mnist"), ("digits", "digits")):
        report = runs / name / "report.html"
        if report.exists():
            shoot_first_screen(browser, report, folder / f"{image}.png")
        else:
            missing.append(f"{image}: there is no {report}")
    for image, (name, key) in SECTIONS.items():
        report = runs / name / "report.html"
        if not report.exists() or not shoot_section(browser, report, key, folder / f"{image}.png"):
            missing.append(f"{image}: {report} has no section {key}")
    database = runs / "optuna.db"
    if not database.exists():
        run_program(OPTUNA, runs)
    page = runs / "adopt.html"
    command = ["studyloom", "adopt", database, "--trials", "40", "--page", page]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    page.write_text(page.read_text().replace(str(runs.parent), HOME))
    shoot_first_screen(browser, page, folder / "adopt.png", height=820)
    return missing


def example_of_the_readme() -> str:
    """Returns the first program of the README, which the tutorial has too."""
    _, _, rest = (ROOT / "README.md").read_text().partition("```python\n")
    program, _, _ = rest.partition("```")
    return program


def run_program(program: str, folder: Path) -> None:
    """Runs a Python program in a folder."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        subprocess.run([sys.executable, file.name], cwd=folder, check=True)


def run_again(runs: Path) -> str:
    """Returns what the program of the tutorial prints in a terminal of 80 columns at its end.

    The study has ended already, so that it prints only its result.
    """
    path = runs.parent / "digits.py"
    path.write_text(example_of_the_readme())
    text = run_in_terminal([sys.executable, path.name], runs.parent)
    return f"$ python digits.py\n{text}"


def run_in_terminal(command: list[str], folder: Path) -> str:
    """Runs a command in a terminal of 80 columns, and returns what it prints, with its colors."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "LINES": "40", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=follower, stderr=follower, stdin=follower
    )
    os.close(follower)
    content = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # the command has ended
            break
        if not chunk:
            break
        content += chunk
    os.close(leader)
    process.wait()
    return content.decode(errors="replace").replace("\r\n", "\n")


def shoot_terminal(browser: Browser, text: str, path: Path) -> None:
    console = Console(record=True, file=io.StringIO(), width=80, force_terminal=True)
    console.print(Text.from_ansi(text.strip()), soft_wrap=True)
    html = console.export_html(theme=DIMMED_MONOKAI, inline_styles=True, code_format=TERMINAL)
    page = browser.new_page(viewport={"width": 900, "height": 600}, device_scale_factor=SCALE)
    page.set_content(html)
    path.write_bytes(small(page.locator("pre").first.screenshot(), MOST_OF_PAGE))
    page.close()
    print(path)


def shoot_first_screen(browser: Browser, report: Path, path: Path, height: int = 0) -> None:
    """Takes the first screen of a report."""
    size = FIRST_SCREEN
    if height:
        size = {"width": FIRST_SCREEN["width"], "height": height}
    page = browser.new_page(viewport=size, color_scheme="light", device_scale_factor=SCALE)
    page.goto(report.as_uri())
    path.write_bytes(small(page.screenshot(), MOST_OF_PAGE))
    page.close()
    print(path)


def shoot_section(browser: Browser, report: Path, key: str, path: Path) -> bool:
    """Takes a section or part of a report; returns False if the report has none of that name."""
    size = {"width": SECTION_WIDTH, "height": 100}  # the page is at least as high
    page = browser.new_page(viewport=size, color_scheme="light", device_scale_factor=SCALE)
    page.goto(report.as_uri())
    page.evaluate(HIDE_HOST)
    section = page.locator(f"#{key}").first
    is_there = section.count() > 0
    if is_there:
        page.add_style_tag(content=ALONE.format(key=key) + SECTION_ALONE)
        tall = page.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": SECTION_WIDTH, "height": min(tall, TALLEST_SECTION)}
        path.write_bytes(small(page.screenshot(full_page=True, clip=clip), MOST_OF_SECTION))
        print(path)
    page.close()
    return is_there


def record_outputs(runs: Path, folder: Path) -> None:
    """Writes what commands print for the study of digits, as the reference shows it."""
    with tempfile.TemporaryDirectory() as working_folder:
        (Path(working_folder) / "runs").symlink_to(runs)
        for name in COMMANDS:
            arguments = [name, "runs/digits"]
            write_output(arguments, Path(working_folder), folder / f"{name}.txt")
        adopt = ["adopt", "runs/optuna.db", "--trials", "40"]
        write_output(adopt, Path(working_folder), folder / "adopt.txt")


def write_output(arguments: list[str], working_folder: Path, path: Path) -> None:
    """Writes a command of studyloom and what it prints in a terminal of 80 columns to a file."""
    text = run_in_terminal(["studyloom", *arguments], working_folder)
    lines = Text.from_ansi(text.strip()).plain.splitlines()
    lines = [line.rstrip().replace(str(working_folder), HOME) for line in lines]
    if len(lines) > LONGEST_OUTPUT:
        lines = [*lines[:LONGEST_OUTPUT], "…"]
    path.write_text("\n".join([f"$ studyloom {' '.join(arguments)}", *lines, ""]))
    print(path)


# The gallery and the notebook


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
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(report.as_uri())
        if page.locator(f"#{key}").count() == 0:
            missing.append(f"{name}: {report} has no section {key}")
            page.close()
            continue
        page.add_style_tag(content=ALONE.format(key=key))
        content = page.screenshot()
        page.close()
        path.write_bytes(small(content))
        print(path)
    return missing


def shoot_notebook(browser: Browser, path: Path) -> None:
    """Takes a screenshot of a notebook that has executed the first example of the README."""
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_code_cell, new_notebook

    example = example_of_the_readme().split("print(")[0].strip()
    sources = [example, "study", "study.winner", "study.winner.predict(inputs[0])"]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the kernel: tqdm misses a widget
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
        html, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    page = browser.new_page(viewport={"width": 1000, "height": 400}, color_scheme="light")
    page.route("**/*", lambda route: route.abort())  # scripts that it does not need
    page.set_content(html)
    path.write_bytes(small(page.locator("main").screenshot(), MOST_OF_PAGE))
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


if __name__ == "__main__":
    sys.exit(main())
