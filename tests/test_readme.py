"""Every README is true: its commands, tables, code and links.

CI runs the commands of the main README; here each command of every README is parsed or composed.
"""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT, environment, study_here
from test_house import FLOORS
from toys import compose

from studyloom.cli import main, make_parser
from studyloom.config.scaffold import write_study
from studyloom.environment import PREFIX, PUBLIC, variables_help

FOLDERS = ("", ".github", "conf", "scripts", "src/studyloom", "studies", "tests")
PAPERS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.md"))
}
PROGRAMS = ("python", "python3", "pip", "studyloom", "pytest", "bash", "export", "pre-commit")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST = 150
VARIABLES = ("variable", "meaning")  # the heads of their table


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, which stands behind the first fence."""
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def is_command(line: str) -> bool:
    return line.startswith("scripts/") or line.split(" ")[0] in PROGRAMS


def commands_of(text: str) -> list[tuple[str, str]]:
    """The commands in the fenced blocks of a paper, each with its comment."""
    plain = "".join(blocks(text, "")).replace("\\\n", " ").splitlines()
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


def test_the_readme_is_short():
    assert len(PAPERS["README.md"].splitlines()) <= LONGEST


def test_the_readme_has_the_commands_of_ci_word_for_word():
    script = "".join((ROOT / ".ci" / name).read_text() for name in ("steps", "run"))
    written = re.findall(r'^readonly \w+="(.+)"$|as_written "(pytest.+?)" "', script, re.MULTILINE)
    commands = [first or second for first, second in written]
    assert len(commands) == 3
    for command in commands:
        assert command in PAPERS["README.md"]


STUDY = re.compile(r"(?:.* && )?python -m studies\.(?!mine|films|pairs)(\w+) ?(.*)")


def test_every_command_composes_or_parses():
    studies = [match.groups() for c in COMMANDS if (match := STUDY.fullmatch(c))]
    ours = [command for command in COMMANDS if command.startswith("studyloom ")]
    assert len(studies) > 10
    assert len(ours) > 10
    for page, rest in studies:
        overrides = [word for word in shlex.split(rest) if not word.startswith("--")]
        if "--config-dir" not in rest and "model=cnnn" not in rest:
            compose(*overrides, name=page)
    for command in ours:
        assert make_parser().parse_args(shlex.split(command)[1:]).act, command


def test_mistakes_are_reported_as_the_example_shows():
    example = next(b for b in blocks(PAPERS["conf/README.md"], "console") if "cnnn" in b)
    done = study_here("model=cnnn", "study.seed=x")
    assert done.returncode == 2
    _, *lines = example.splitlines()  # the command, then what it prints
    assert done.stderr.split() == " ".join(lines).split()


def test_every_promise_has_its_test():
    rows = table(PAPERS["tests/README.md"], "promise", "test")
    assert len(rows) > 30
    for _, command in rows:
        path, *options = shlex.split(command)
        assert (ROOT / path).exists(), command
        if "-k" in options:
            word = options[options.index("-k") + 1]
            assert [name for name in names_below(ROOT / path) if word in name], command


def test_the_rooms_are_listed_from_the_bottom_up():
    rows = table(PAPERS["src/studyloom/README.md"], "room", "what it is for", "outside packages")
    assert [room.strip("/") for room, *_ in rows] == [*FLOORS]


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
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], link


INTERFACE = PAPERS["conf/README.md"]


def test_the_table_of_keys_is_that_of_studyloom_keys(capsys):
    assert main(["keys"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) > 50
    assert printed in INTERFACE


def test_the_table_of_environment_variables_is_that_of_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert variables_help() in capsys.readouterr().out
    rows = {name: meaning.replace("`", "") for name, meaning in table(INTERFACE, *VARIABLES)}
    plain = {name: re.sub(r"\[(.*?)\]\(.*?\)", r"\1", meaning) for name, meaning in rows.items()}
    listed = {variable.name: variable.meaning for variable in PUBLIC}
    assert {name: plain.get(name) for name in listed} == listed
    assert {name for name in plain if name.startswith(PREFIX)} <= {*listed}


def test_every_option_of_every_group_is_listed():
    rows = dict(table(INTERFACE, "group", "options"))
    groups = {folder.name: folder for folder in (ROOT / "conf").iterdir() if folder.is_dir()}
    assert {group.strip("=") for group in rows} == {*groups}
    pages = {path.stem for path in (ROOT / "conf").glob("*.yaml")}
    for group, folder in groups.items():
        options = {path.stem for path in folder.glob("*.yaml")}
        words = {*re.findall(r"\w+", rows[f"{group}="])}
        assert options - (pages if group == "space" else set()) <= words
        assert {*re.findall(r"(?:^|`)(\w+)(?:`|$)", rows[f"{group}="])} <= options


def test_the_space_of_the_example_is_the_one_in_its_file():
    (example,) = blocks(INTERFACE, "yaml")
    space = (ROOT / "conf" / "space" / "mlp_or_cnn.yaml").read_text()
    assert yaml.safe_load(example) == yaml.safe_load(space)


QUICK = ("study.trials=2", "train.epochs=1", "winner.seeds=2", "launcher.workers=1")


@pytest.mark.chaos
def test_the_own_study_of_the_readme_runs_as_it_stands(tmp_path):
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
def test_the_loop_of_the_readme_is_searched_and_tested(tmp_path):
    text = PAPERS["studies/README.md"]
    (code, *_), (config, *_) = blocks(text, "python"), blocks(text, "yaml")
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(config)
    quick = ("study.trials=3", "params.epochs=1", "winner.seeds=2", "launcher.workers=1")
    command = [sys.executable, "-m", "studyloom", "run", "mine.yaml", *quick]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 trials" in done.stdout
    assert "test      winner accuracy 0." in done.stdout
