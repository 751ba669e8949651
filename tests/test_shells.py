"""Every command of a document survives bash and zsh: the shell splits it, our parser takes it.

Functions named as the programs record their words, so that nothing runs.
"""

import re
import shlex
import subprocess

import pytest
from commands import study_here
from test_how_do_i import ANSWERS, pieces_of
from test_readme import COMMANDS, PAPERS, SITE, blocks
from toys import compose

from studyloom.cli import make_parser

NAMES = (
    *("python", "python3", "pip", "studyloom", "pytest", "bash", "pre-commit", "tensorboard"),
    *("rm", "optuna"),
)
RECORD = "".join(
    f"{name}() {{ printf '%s\\0' {name} \"$@\" >&3; printf '\\036' >&3; }}\n" for name in NAMES
)
HEAD = RECORD + 'nohup() { "$@"; }\nexec 3>words\n'
SHELLS = {"bash": ("bash", "--norc", "-c"), "zsh": ("zsh", "-f", "-c")}
STUDY = re.compile(r"studies\.(?!mine|films|pairs)(\w+)")
# Commands that need a server, a run directory, data or an extra, or show an error.
ELSEWHERE = re.compile(
    r"postgres|launcher=|launcher\.gpus|warm_start=|--config-dir|cnnn|newsgroups|ratings|track="
)
OF_A_STUDY = re.compile(r"'?~?[a-z_]+\.[\w.]+(=.*)?|launcher=.*|storage=.*")  # an override in a row


@pytest.fixture(params=["bash", pytest.param("zsh", marks=pytest.mark.nightly)])
def split(request, tmp_path, needs):
    """A function: the words of each program that a command line calls, as a shell splits it."""
    needs(request.param)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name in ("check", "test"):
        script = tmp_path / "scripts" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)

    def run(line):
        command = (*SHELLS[request.param], f"{HEAD}{line}\nwait")
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), f"{line}: {done.stderr}"
        calls = (tmp_path / "words").read_text().split("\x1e")[:-1]
        return [call.split("\0")[:-1] for call in calls]

    return run


def problem(words):
    """What is wrong with a call: a command of ours is parsed, a study composed; else None."""
    study = STUDY.fullmatch(words[2]) if words[:2] == ["python", "-m"] else None
    try:
        if words[0] == "studyloom" and words[1] not in ("--help", "--version"):
            make_parser().parse_args(words[1:])
        elif study is not None and not {"--config-dir", "model=cnnn"} & {*words}:
            compose(*(word for word in words[3:] if not word.startswith("-")), name=study[1])
    except (Exception, SystemExit) as error:
        return f"{shlex.join(words)}: {error}"


def test_bash_and_zsh_pass_on_every_documented_command(split):
    called = [words for line in COMMANDS for words in split(line)]
    assert sum(words[0] == "studyloom" for words in called) > 10
    assert sum(words[:2] == ["python", "-m"] for words in called) > 10
    problems = [*filter(None, map(problem, called))]
    assert not problems, "\n".join(problems)


def test_bash_and_zsh_pass_on_the_overrides_of_the_guides(split):
    pieces = [piece for task, _ in ANSWERS for piece in pieces_of(task)]
    overrides = [piece for piece in pieces if OF_A_STUDY.fullmatch(piece)]
    assert len(overrides) > 12
    for override in overrides:
        ((*_, word),) = split(f"python -m studies.mnist {override}")
        assert [word] == shlex.split(override)
    typed = ("studyloom ", "nohup ", "rm ", "optuna ")
    called = [words for line in pieces if line.startswith(typed) for words in split(line)]
    problems = [*filter(None, map(problem, called))]
    assert not problems, "\n".join(problems)


def test_bash_and_zsh_pass_on_the_overrides_in_sentences(split):
    texts = [text for name, text in PAPERS.items() if name.startswith(SITE)]
    pieces = {piece for text in texts for piece in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)}
    odd = [piece for piece in pieces if re.match(r"'?[+~]*[a-z_]+\.[a-z_.]+=.*[\[{*?]", piece)]
    assert len(odd) > 5
    for override in odd:
        ((*_, word),) = split(f"python -m studies.mnist {override}")
        assert [word] == shlex.split(override)


def test_no_command_of_the_site_needs_a_comment():
    """An interactive zsh takes `# …` as arguments."""
    for name, text in PAPERS.items():
        if name.startswith(SITE):
            lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
            assert not [line for line in lines if re.search(r"\S\s+#", line)], name
            comments = [line for line in lines if line.startswith("#")]
            assert not [line for line in comments if re.search(r"['\"`*?\[{~(]", line)], name


@pytest.mark.chaos
def test_every_documented_command_of_a_study_passes_its_dry_run(tmp_path, monkeypatch):
    (mixup,) = blocks(PAPERS[f"{SITE}/guides/training.md"], "python")
    (tmp_path / "mixup.py").write_text(mixup)
    monkeypatch.syspath_prepend(tmp_path)
    lines = [line for line in COMMANDS if STUDY.search(line) and not ELSEWHERE.search(line)]
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(line)
        name, *overrides = words[words.index("-m") + 1 :]
        done = study_here(*overrides, "--dry-run", page=name.removeprefix("studies."))
        assert done.returncode == 0, f"{line}: {done.stderr}"
