"""Every document is true: its tables, code and links; `test_shells.py` checks the commands.

Documents are the READMEs and the sources of the site, .github/site/docs. CI runs the commands of
the main README.
"""

import functools
import re
import shlex
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from threading import Condition

import optuna
import pytest
import yaml
from commands import ROOT, environment, shows_test, study_here
from test_house import FLOORS

from studyloom.cli import main
from studyloom.config.scaffold import write_study
from studyloom.environment import variables_help
from studyloom.extras.slurm import Slurm

SITE = ".github/site/docs"
FOLDERS = (
    *("", ".github", "conf", "scripts", "src/studyloom", "studies", "tests"),
    *(SITE, f"{SITE}/guides", f"{SITE}/reference"),
)
PAPERS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.md"))
}
PROGRAMS = (
    *("python", "python3", "pip", "studyloom", "pytest", "bash", "export", "pre-commit"),
    *("nohup", "tensorboard"),
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIABLES = ("variable", "meaning")  # the heads of their table


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, which stands behind the first fence."""
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def is_command(line: str) -> bool:
    return line.startswith("scripts/") or line.split(" ")[0] in PROGRAMS


def commands_of(text: str) -> list[tuple[str, str]]:
    """The commands in the fenced blocks of a paper, each with its comment."""
    shell_blocks = (*blocks(text, ""), *blocks(text, "sh"))
    plain = "".join(shell_blocks).replace("\\\n", " ").splitlines()
    shell = [line for line in plain if is_command(line)]
    prompts = "".join(blocks(text, "console")).splitlines()
    shell += [line.removeprefix("$ ") for line in prompts if line.startswith("$ ")]
    parts = [re.split(r"\s+#\s", line, maxsplit=1) for line in shell]
    return [(re.sub(r"\s+", " ", c).strip(), "".join(comment)) for c, *comment in parts]


COMMANDS = {command: comment for text in PAPERS.values() for command, comment in commands_of(text)}


def table(text: str, *heads: str) -> list[list[str]]:
    """The cells of the rows of a table with such heads, without their backquotes."""
    lines = text.splitlines()
    first = lines.index("| " + " | ".join(heads) + " |") + 2
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line.strip("|"))
        rows.append([cell.strip().strip("`") for cell in cells])
    return rows


@functools.cache
def names_in(file: Path) -> set[str]:
    return {*re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}


def names_below(path: Path) -> set[str]:
    """The names of the tests in a file, or in all files below a folder."""
    files = [path] if path.is_file() else path.rglob("test_*.py")
    return set().union(*map(names_in, files))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_readme_has_the_commands_of_ci_word_for_word():
    script = "".join((ROOT / ".ci" / name).read_text() for name in ("steps", "run"))
    written = re.findall(r'^readonly \w+="(.+)"$|as_written "(pytest.+?)" "', script, re.MULTILINE)
    commands = [first or second for first, second in written]
    assert len(commands) == 3
    for command in commands:
        assert command in PAPERS["README.md"]


def test_errors_are_reported_as_the_example_shows():
    text = PAPERS[f"{SITE}/reference/configuration.md"]
    example = next(block for block in blocks(text, "console") if "cnnn" in block)
    done = study_here("model=cnnn", "study.seed=x")
    assert done.returncode == 2
    _, *lines = example.splitlines()  # the command, then what it prints
    assert done.stderr.split() == " ".join(lines).split()


def test_plain_optuna_does_what_the_readme_says():
    text = PAPERS["README.md"]
    storage, begun, change = optuna.storages.InMemoryStorage(), [], Condition()
    study = optuna.create_study(storage=storage, study_name="s", direction="minimize")

    def objective(trial):  # ends when four run, or no other begins
        with change:
            begun.append(trial.number)
            change.notify_all()
            change.wait_for(lambda: len(begun) > trial.number + 3, timeout=0.5)
        return trial.suggest_float("x", 0, 1)

    def work(_):
        study = optuna.load_study(study_name="s", storage=storage)
        study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(10)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert f"`MaxTrialsCallback(10)` in 4 workers ran {len(study.trials)} trials" in text
    other = optuna.create_study(
        storage=storage, study_name="s", direction="maximize", load_if_exists=True
    )
    other.optimize(lambda trial: trial.suggest_float("x", 5, 9), n_trials=1)
    assert (other.direction, other.trials[-1].params["x"] >= 5) == (study.direction, True)
    assert (
        "`load_if_exists=True` accepts other ranges of numbers, ignores another direction" in text
    )


def test_every_guarantee_has_its_test():
    rows = table(PAPERS["tests/README.md"], "guarantee", "test")
    assert len(rows) > 30
    for _, command in rows:
        path, *options = shlex.split(command)
        assert (ROOT / path).exists(), command
        if "-k" in options:
            word = options[options.index("-k") + 1]
            assert [name for name in names_below(ROOT / path) if word in name], command


def test_the_layers_are_listed_from_the_bottom_up():
    rows = table(PAPERS["src/studyloom/README.md"], "layer", "what it is for", "outside packages")
    assert [layer.strip("/") for layer, *_ in rows] == [*FLOORS]


def test_every_link_leads_somewhere():
    links = [
        (paper, (ROOT / paper).parent, first or second)
        for paper, text in PAPERS.items()
        for first, second in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    ]
    for paper, folder, link in links:
        file, _, anchor = link.partition("#")
        if file.startswith("https:"):
            continue
        target = folder / file if file else ROOT / paper
        assert target.exists(), f"{paper}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], f"{paper}: {link}"


def test_help_lists_the_environment_variables(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert variables_help() in capsys.readouterr().out


def test_every_option_of_every_group_is_listed():
    rows = dict(table(PAPERS[f"{SITE}/reference/groups.md"], "group", "options"))
    groups = {folder.name: folder for folder in (ROOT / "conf").iterdir() if folder.is_dir()}
    assert {group.strip("=") for group in rows} == {*groups}
    pages = {path.stem for path in (ROOT / "conf").glob("*.yaml")}
    for group, folder in groups.items():
        options = {path.stem for path in folder.glob("*.yaml")}
        words = {*re.findall(r"\w+", rows[f"{group}="])}
        assert options - (pages if group == "space" else set()) <= words
        assert {*re.findall(r"(?:^|`)(\w+)(?:`|$)", rows[f"{group}="])} <= options


def test_the_search_space_of_the_example_is_the_one_in_its_file():
    (example,) = blocks(PAPERS[f"{SITE}/reference/search-space.md"], "yaml")
    space = (ROOT / "conf" / "space" / "mlp_or_cnn.yaml").read_text()
    assert yaml.safe_load(example) == yaml.safe_load(space)


QUICK = ("study.trials=2", "train.epochs=1", "winner.seeds=2", "launcher.workers=1")


def test_the_samples_are_those_that_the_documents_name():
    named = {
        name for text in PAPERS.values() for name in re.findall(r"studies/samples/([\w.]+)", text)
    }
    listed = {row[0] for row in table(PAPERS["studies/README.md"], "file", "for `runs/`", "origin")}
    assert named <= listed == {path.name for path in (ROOT / "studies/samples").iterdir()}


def test_the_tutorial_has_the_first_program_of_the_readme():
    """It runs as it stands: `test_cells.py` executes that of the README."""
    first, _ = blocks(PAPERS[f"{SITE}/tutorial.md"], "python")
    assert first == blocks(PAPERS["README.md"], "python")[0]


def test_the_readme_has_one_picture_at_full_width():
    (image,) = re.findall(r"<img .*?>", PAPERS["README.md"])
    assert 'width="100%"' in image
    assert len(PAPERS["README.md"].splitlines()) <= 150


def test_the_titles_of_figures_are_those_of_the_report():
    sections = tomllib.loads((ROOT / "src/studyloom/assets/report/sections.toml").read_text())
    titles = {section.get("title", "") for section in sections.values()}
    rows = table(PAPERS[f"{SITE}/guides/report.md"], "figure", "what it shows", "look for")
    assert {title for title, _, _ in rows} <= titles


@pytest.mark.chaos
def test_the_example_of_a_custom_study_in_the_readme_runs_unchanged(tmp_path):
    text = PAPERS["README.md"].partition("## In YAML")[2]
    (space,) = blocks(text, "yaml")

    def run(*command):
        options = {"env": environment(), "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first, begins, *_ = [shlex.split(command) for command, _ in commands_of(text)]
    assert first == ["studyloom", "new", "mine"]
    write_study("mine", tmp_path)
    run(*begins[1:], *QUICK)
    config = tmp_path / "conf" / "mine.yaml"
    config.write_text(config.read_text().partition("\nspace:")[0] + f"\n{space}")
    assert "2 of 2 trials" in run("-m", "studies.mine", *QUICK)


@pytest.mark.chaos
def test_the_loop_of_the_guide_is_searched_and_tested(tmp_path):
    text = PAPERS[f"{SITE}/guides/custom-loop.md"]
    code, *_ = blocks(text, "python")
    (config,) = blocks(text, "yaml")
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(config)
    quick = ("study.trials=3", "params.epochs=1", "winner.seeds=2", "launcher.workers=1")
    command = [sys.executable, "-m", "studyloom", "run", "mine.yaml", *quick]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 trials" in done.stdout
    assert shows_test(done.stdout)


def run_program(folder, page, position=0):
    """Runs a Python program of a page, the first one by default, and returns what it prints."""
    code = blocks(PAPERS[f"{SITE}/{page}"], "python")[position]
    (folder / "mine.py").write_text(code)
    command = [sys.executable, "mine.py"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.chaos
def test_the_objective_of_the_guide_runs_unchanged(tmp_path):
    assert "20 of 20 trials" in run_program(tmp_path, "guides/optuna-objective.md")


@pytest.mark.chaos
def test_the_objective_of_the_guide_is_tested_next_to_its_baseline(tmp_path):
    printed = run_program(tmp_path, "guides/optuna-objective.md", position=1)
    assert re.search(r"^baseline +0 ", printed, re.MULTILINE)
    assert re.search(r"difference \S+, 95% interval \S+ to \S+ over seeds", printed)


@pytest.mark.chaos
def test_the_program_of_optunas_objects_runs_unchanged(tmp_path):
    printed = run_program(tmp_path, "guides/from-optuna.md")
    assert "20 of 20 trials" in printed
    assert re.search(r"^\{'x': \S+\} \S+ \d+$", printed, re.MULTILINE)


@pytest.mark.chaos
def test_a_folder_with_a_validation_set_is_searched_as_the_guide_says(tmp_path):
    from PIL import Image

    (code,) = blocks(PAPERS[f"{SITE}/guides/own-model.md"], "python")
    head, rest = code.split("    net = torchvision", 1)
    net = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, classes))"
    few = "trials=2, workers=1, train={'epochs': 1}, winner={'top': 1, 'seeds': 1},"
    call = rest.partition("return net\n")[2].replace('name="photos",', f'name="p", {few}')
    code = f"{head}    return {net}\n{call}"
    (tmp_path / "mine.py").write_text(code)
    for part in ("train", "valid", "test"):
        for kind in ("cat", "dog"):
            folder = tmp_path / "photos" / part / kind
            folder.mkdir(parents=True)
            for number in range(8):
                color = (number * 9, 0, 200) if kind == "cat" else (200, number * 9, 0)
                Image.new("RGB", (40, 30), color).save(folder / f"{number}.png")
    command = [sys.executable, "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials" in done.stdout
    assert shows_test(done.stdout)


def test_the_script_of_the_slurm_page_is_the_one_that_is_written():
    text = PAPERS[f"{SITE}/guides/slurm.md"]
    script = next(block for block in blocks(text, "") if block.startswith("#!"))
    lines = ["#SBATCH --account=vision", "module load cuda"]
    slurm = Slurm(workers=8, partition="gpu", time="12:00:00", memory="32G", lines=lines)
    project = Path("/scratch/me/project")
    written = slurm.script("mnist", 8, ["python"], project, project / "runs/mnist/logs")
    assert written.startswith(script)
    for key in (field.name for field in fields(Slurm)):
        assert f"launcher.{key}" in text
