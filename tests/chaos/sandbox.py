"""A process that runs configs of somebody else, and reports whatever they touch.

It composes and builds as a command does, thousands of times in one process. An audit hook of Python
sees every file, process, socket, variable and import; what would only be used later, such as the
URL of the database, is looked up in the composed config.
"""

import contextlib
import io
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attacks import SECRET
from commands import FORKS

# The user's own config: with few groups, each of which costs milliseconds.
OWN = """
defaults:
  - studyloom
  - data: mnist5k
  - model: mlp
  - sampler: random
  - storage: sqlite
  - launcher: local
  - space: none
  - _self_
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
study: {name: own}
"""
CANARY = "c4nary"  # in the name of everything that must not be touched
# Audit events that start something, connect somewhere or load machine code.
STARTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
STARTS += ("subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo")
STARTS += ("ctypes.dlopen", "webbrowser.open", "os.kill", "os.chdir", "os.putenv", "os.unsetenv")
# Those that change the file named first, or first and second.
CHANGES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate")
CHANGES += ("os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile")
OURS = ("STUDYLOOM_STORAGE", "STUDYLOOM_FROM", "HYDRA_FULL_ERROR", "HYDRA_MAIN_MODULE")


@dataclass
class Layout:
    """Somebody's folder of configs, and the command that composes it.

    Args:
        files: their text by path below the folder, without .yaml.
        argv: the command, in which THEIRS is the folder.
    """

    files: dict[str, str]
    argv: list[str]


@dataclass
class Seen:
    """What became of a layout: whether it was composed, and the canaries that it touched."""

    composed: bool = False
    touched: list[str] = field(default_factory=list)
    printed: str = ""


class Sandbox:
    """Runs layouts in a process of its own.

    Args:
        folder: the process writes nothing outside of it.
        checked: whether configs are checked; without it, the canaries are touched.
    """

    def __init__(self, folder: Path, *, checked: bool = True) -> None:
        self._pipe, other = FORKS.Pipe()
        self._process = FORKS.Process(target=_serve, args=(other, folder, checked), daemon=True)
        self._process.start()
        other.close()

    def run(self, layout: Layout) -> Seen:
        self._pipe.send(layout)
        assert self._pipe.poll(120), ("it hangs", layout)
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(30)
        self._process.kill()


def _serve(pipe: Connection, folder: Path, checked: bool) -> None:
    warnings.simplefilter("ignore")
    os.environ["SECRET"] = SECRET
    sys.path[:0] = [str(folder)]
    (folder / "c4nary_code.py").write_text("def touch(*_, **__): open('c4nary')\n")
    from studyloom.config import foreign, main

    if not checked:
        foreign.active = lambda: None
        main.foreign_mistakes = lambda *_: []
    runner = _Runner(folder)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(runner.run(pipe.recv()))


class _Runner:
    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.theirs = folder, folder / "work", folder / "theirs"
        self.out, self.own = folder / CANARY, folder / "own"
        self.own.mkdir()
        (self.own / "own.yaml").write_text(OWN)
        self.out.mkdir()
        (self.out / "read.yaml").write_text("params: {x: 1}\n")
        os.mkfifo(self.out / "fifo.yaml")
        self.armed: Seen | None = None
        sys.addaudithook(self._audit)
        self.task_imports()

    def task_imports(self) -> None:
        """Imports what building needs, so that only what a config causes is seen."""
        import optuna.pruners
        import optuna.samplers  # noqa: F401
        import torch.optim  # noqa: F401

        import studyloom.data.sources
        import studyloom.models  # noqa: F401

    def run(self, layout: Layout) -> Seen:
        from hydra.core.global_hydra import GlobalHydra

        from studyloom.config import hydra_main

        for folder in (self.work, self.theirs):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for name, text in layout.files.items():
            path = self.theirs / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._placed(text), errors="surrogatepass")
        sys.argv = ["study.py", *map(self._placed, layout.argv)]
        os.chdir(self.work)
        before, seen, output = dict(os.environ), Seen(), io.StringIO()
        handlers = logging.root.handlers[:]
        GlobalHydra.instance().clear()
        self.armed = seen
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                hydra_main(str(self.own), "own")(self._task)()
            except SystemExit as end:
                if end.code not in (0, 2, None):
                    seen.touched.append(f"exit code {end.code}: {output.getvalue()[-300:]}")
            except BaseException as error:
                seen.touched.append(f"{type(error).__name__}: {error}")
        self.armed = None
        after = dict(os.environ)
        for name in {*before, *after} - {*OURS}:
            if before.get(name) != after.get(name):
                seen.touched.append(f"variable {name}")
        os.environ.clear()
        os.environ.update(before)
        logging.root.handlers[:] = handlers
        seen.printed = output.getvalue()
        texts = [seen.printed, *self._written()]
        seen.touched += [f"the secret is shown: {text[:200]}" for text in texts if SECRET in text]
        return seen

    def _placed(self, text: str) -> str:
        return text.replace("OUT", str(self.out)).replace("THEIRS", str(self.theirs))

    def _written(self) -> Iterator[str]:
        for path in self.work.rglob("*"):
            if path.is_file():
                yield path.read_text(errors="replace")

    def _task(self, cfg: Any) -> None:
        """What a study does with its config, as far as a config can lead it."""
        from omegaconf import OmegaConf

        from studyloom.config.build import build
        from studyloom.config.compose import Composer
        from studyloom.config.values import plain_sections, write_yaml

        assert self.armed is not None
        self.armed.composed = True
        composer = Composer.from_hydra()
        composer.keep(cfg)
        configs = [cfg]
        space = cfg.space if OmegaConf.is_dict(cfg.space) else {}
        for group, options in list(space.items())[:3]:
            for option in list(options)[:2] if OmegaConf.is_dict(options) else []:
                with contextlib.suppress(ValueError):
                    configs.append(composer.compose({str(group): str(option)}))
        for config in configs:
            self._note_reach(config)
            for section in ("data", "model", "optimizer", "scheduler", "loss", "sampler", "pruner"):
                with contextlib.suppress(Exception):
                    build(config[section])
            for section in (config.launcher, config.objective):
                with contextlib.suppress(Exception):
                    build(section)
            with contextlib.suppress(Exception):
                write_yaml(Path("best.yaml"), plain_sections(config, "params", "study", "data"), "")

    def _note_reach(self, config: Any) -> None:
        """Notes canaries in what a study would read, write, connect to or execute later."""
        from omegaconf import OmegaConf

        assert self.armed is not None
        reach = ("run_dir", "storage", "checkpoints", "launcher", "study.from")
        for key in (*reach, "data.root", "data.path", "objective._target_", "data.load"):
            try:
                node = OmegaConf.select(config, key)
                value = (
                    OmegaConf.to_container(node, resolve=True)
                    if OmegaConf.is_config(node)
                    else node
                )
            except Exception:  # it cannot be resolved, and so not be used
                continue
            if CANARY in str(value):
                self.armed.touched.append(f"{key} is {value}")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        seen = self.armed
        if seen is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if isinstance(path, (str, bytes, os.PathLike)) and (
                CANARY in os.fsdecode(path) or (writes and not self._inside(os.fsdecode(path)))
            ):
                seen.touched.append(f"open {os.fsdecode(path)} {mode} {flags}")
        elif event == "import" and CANARY in str(arguments[0]):
            seen.touched.append(f"import {arguments[0]}")
        elif event.startswith(STARTS):
            if not str(arguments[0]).strip("b'").startswith(OURS):
                seen.touched.append(f"{event} {arguments}")
        elif event in CHANGES and not all(
            self._inside(str(name))
            for name in arguments[:2]
            if isinstance(name, (str, os.PathLike))
        ):
            seen.touched.append(f"{event} {arguments}")

    def _inside(self, path: str) -> bool:
        whole = os.path.realpath(path)
        return whole.startswith(str(self.work)) or path == os.devnull
