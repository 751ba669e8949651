"""Commands as a user runs them: in a new interpreter, in a fork that has the libraries, or here."""

import contextlib
import io
import logging
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from studyloom.commands.documents import DOCUMENTS

CANARY = "canary-password"  # of a database; must show up in no output and no file
ROOT = Path(__file__).parent.parent.parent

# Trials of some milliseconds on a narrow space, for tests of everything around them.
QUICK = (
    "winner.enabled=false",
    "data.validation=100",
    "train.epochs=2",
    "train.samples_per_epoch=64",
    "train.batch_size=32",
    "model.hidden=[16]",
    "space=lr",
    "sampler=random",
    "pruner=none",
)


# Removes the keys of model=mlp, for a custom network instead.
BARE = ("~model.hidden", "~model.activation", "~model.dropout", "~model.init", "~model.standardize")

# A process forked here starts in milliseconds; an interpreter imports these for two seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "studyloom.commands.run_study",
        "alembic.command",
        "sqlalchemy.dialects.sqlite",
        "sqlalchemy.dialects.postgresql.psycopg",
    ]
)


def documented(document, name):
    """A JSON document; its fields are those that the reference lists, and have their types."""
    kind = DOCUMENTS[name]
    msgspec.convert(document, kind)
    rows = document if isinstance(document, list) else [document]
    shape = get_args(kind)[0] if isinstance(document, list) else kind
    fields = {*get_type_hints(shape)}
    missing = getattr(shape, "__optional_keys__", frozenset())
    for row in rows if fields else ():  # those of compress.json are not listed
        keys = {key for key in row if not key.startswith(("params.", "values."))}
        assert fields - missing <= keys <= fields, (name, keys ^ fields)
    return document


def environment(**extra: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STUDYLOOM_", "HYDRA_")) or name == "STUDYLOOM_PORTABLE"
    }
    return kept | {"COLUMNS": "80"} | extra


def study(
    *overrides: str, page: str = "mnist", cwd: Path = ROOT, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m studies.PAGE OVERRIDES` to its end, forked from the libraries."""
    return _forked([f"studies.{page}", *overrides], cwd, {"PYTHONPATH": str(ROOT)} | extra)


def studyloom(
    *arguments: object, cwd: Path = ROOT, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Runs `studyloom ARGUMENTS` to its end, forked."""
    return _forked(["studyloom", *map(str, arguments)], cwd, extra)


def start(
    *overrides: str, within: Sequence[str] = (), page: str = "mnist", cwd: Path = ROOT, **extra: str
) -> subprocess.Popen[str]:
    """Starts `python -m studies.PAGE OVERRIDES`, as an argument of the command `within`.

    A page that is a YAML file is started by `studyloom run`.
    """
    module = ["studyloom", "run", page] if page.endswith(".yaml") else [f"studies.{page}"]
    command = [*within, sys.executable, "-m", *module, *overrides]
    env = environment(**{"PYTHONPATH": str(ROOT)} | extra)
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def _forked(
    command: list[str], cwd: Path, extra: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "out"), Path(folder, "err")
        process = FORKS.Process(target=_become, args=(command, cwd, environment(**extra), files))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        return subprocess.CompletedProcess(
            command, process.exitcode, *(file.read_text() for file in files)
        )


def _become(
    command: list[str], cwd: Path, env: Mapping[str, str], files: tuple[Path, Path]
) -> None:
    """Has this process be a command: its folder, environment, output, arguments and module path."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tests = [
        path for path in sys.path if path == str(ROOT) or Path(path).is_relative_to(ROOT / "tests")
    ]
    own = [path for path in sys.path if path not in tests]
    if file := env.get("STUDYLOOM_TEST_KILL"):
        _die_before(file)
    added = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    name, *sys.argv[1:] = command
    if name == "studyloom":
        from studyloom.cli import main

        sys.path[:] = [*added, *own]
        sys.exit(main())
    sys.path[:] = [str(cwd), *added, *own]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _die_before(file: str) -> None:
    """Has SIGKILL end this process just before it puts a file of a name into its place."""
    replace = os.replace

    def replace_or_die(path: Path, target: Path, **folders: int) -> None:
        if Path(target).name == file:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(path, target, **folders)

    os.replace = replace_or_die  # type: ignore[assignment]


def study_here(*overrides: str, page: str = "mnist") -> subprocess.CompletedProcess[str]:
    """Runs a command that starts no worker within this process: `studyloom run conf/PAGE.yaml`."""
    from studyloom.cli import main
    from studyloom.commands import run_study
    from studyloom.worker import forks

    out, err = io.StringIO(), io.StringIO()
    before, arguments, path = dict(os.environ), sys.argv[:], sys.path[:]
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_study, "can_fork", lambda: False)
        patch.setattr(forks, "can_fork", lambda: False)
        patch.chdir(ROOT)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(["run", f"conf/{page}.yaml", *overrides])
            except SystemExit as end:
                code = end.code or 0
    os.environ.clear()
    os.environ.update(before)
    sys.argv[:], sys.path[:] = arguments, path
    logging.captureWarnings(False)
    logging.getLogger().handlers[:], logging.getLogger().level = handlers, level
    return subprocess.CompletedProcess(overrides, code, out.getvalue(), err.getvalue())


def shows_test(printed: str) -> bool:
    """Whether the table at the end of a run has values on the test set."""
    return re.search(r"^\S+ +trial +search .*\btest( ± std)?$", printed, re.MULTILINE) is not None
