import ast
import subprocess
import sys

import pytest
from commands import environment

from studyloom.cli import main
from studyloom.config.scaffold import KINDS, TEMPLATES, write_study
from studyloom.errors import ScaffoldError


def run(*command, cwd):
    kept = {"capture_output": True, "text": True, "timeout": 180}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment(), **kept)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_study_is_written_with_a_description_of_each_file(tmp_path, capsys):
    assert main(["new", "mine", str(tmp_path / "project")]) == 0
    shown = capsys.readouterr().out
    project = tmp_path / "project"
    names = {path.relative_to(project).as_posix() for path in project.rglob("*.*")}
    written = {"studies/mine.py", "conf/mine.yaml", "tests/test_mine.py"}
    assert names == written | {"studies/__init__.py"}
    assert all(name in shown for name in written)
    assert f"cd {project} && python -m studies.mine" in shown


def test_a_new_study_is_short_and_says_what_to_change(tmp_path):
    for kind in KINDS:
        for path in write_study("mine", tmp_path / kind, kind):
            text = path.read_text()
            assert "NAME" not in text
            assert len(text.splitlines()) <= (60 if kind == "tensors" else 95)
            if path.suffix == ".yaml":
                assert "To change:" in text.splitlines()[0]
        page = (tmp_path / kind / "studies" / "mine.py").read_text()
        assert "To change:" in ast.get_docstring(ast.parse(page))


def test_each_kind_of_study_is_in_the_help_and_uses_all_its_templates(capsys):
    with pytest.raises(SystemExit):
        main(["new", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, kind in KINDS.items():
        assert f" {name} {kind['about']} " in shown
        own = {path.relative_to(TEMPLATES / name) for path in (TEMPLATES / name).rglob("*.txt")}
        assert {str(path).removesuffix(".txt") for path in own} <= {*kind["files"]}
    assert {path.name for path in TEMPLATES.iterdir() if path.is_dir()} == {*KINDS, "shared"}


@pytest.mark.chaos
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ("tensors", "command") else [pytest.mark.nightly])
        for kind in KINDS
    ],
)
def test_the_test_and_the_dry_run_of_a_new_study_pass(kind, tmp_path):
    if kind in ("lightning", "transformers"):
        pytest.importorskip(kind, exc_type=ImportError)
    write_study("mine", tmp_path, kind)
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "2 passed" in run(*command, "tests/test_mine.py", cwd=tmp_path)


def test_a_name_that_hides_a_module_or_config_is_refused(tmp_path, capsys):
    for words, names in {
        "must consist of lower-case letters, digits and _": ("my-study", "Mine", "../up", "/x", ""),
        "must not be a keyword of Python": ("class", "match"),
        "must not hide an installed module": ("json", "torch", "studyloom"),
        "model/mlp.yaml, space/mlp.yaml; got 'mlp'": ("mlp",),
    }.items():
        for name in names:
            assert main(["new", name, str(tmp_path / "project")]) == 2
            assert words in capsys.readouterr().err
    assert not (tmp_path / "project").exists()


def test_existing_files_are_named_and_not_overwritten(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "conf").mkdir()
    for name in ("studies/mine.py", "conf/mine.yaml"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "studies" / "__init__.py").write_text("")
    with pytest.raises(ScaffoldError) as caught:
        write_study("mine", tmp_path)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        str(tmp_path / name)
        for name in ("studies/mine.py", "conf/mine.yaml", "studies/__init__.py")
    ]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 3


def test_a_second_study_is_written_next_to_the_first(tmp_path):
    write_study("mine", tmp_path)
    shared = (tmp_path / "studies" / "__init__.py").read_text()
    assert len(write_study("other", tmp_path, "loop")) == len(KINDS["loop"]["files"])
    assert (tmp_path / "studies" / "__init__.py").read_text() == shared
