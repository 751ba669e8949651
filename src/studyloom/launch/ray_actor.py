"""A worker's place on some node of a Ray cluster: an actor that runs the command of a worker, as a process of its own.

Only the standard library is imported here: an actor takes no second copy of PyTorch. Ray pickles the name of the class,
and of its arguments and answers strings, numbers and bytes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from studyloom.launch.process_group import guard
from studyloom.processes import worker_id

WAIT = 0.5  # seconds that a look waits for the end of the worker, which it then tells at once
CHUNK = 2**20  # bytes of a worker's output in one answer
Answer = tuple[
    str, int | None, bytes
]  # the worker's name in the ledger, its exit code, what it has printed since


class Actor:
    """The worker is the leader of a process group, which does not outlive this actor, whatever ends that."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.guard: IO[bytes] | None = None
        self.output = -1  # what the worker prints: a file without a name
        self.told = 0  # bytes of it

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        package: str,
        log: str,
    ) -> Answer:
        """Starts a worker, and ends one that is still here.

        Args:
            arguments: for this node's Python.
            environment: what is set for the worker, beside its device.
            folder: where the command was started. A node that sees `log`, which the command has made, shares its disk
                and works there; another one works in its copy of the folder, which knows no path of the command's host.
            package: where studyloom lies, as seen from there.
        """
        self.clear()
        shared = Path(log).exists()
        base = Path(folder if shared else os.getcwd())
        paths = [str(base / package)] if shared or not Path(package).is_absolute() else []
        paths += [environment.get("PYTHONPATH", "")] if shared else []
        paths += [os.environ.get("PYTHONPATH", "")]  # Ray's copy of the package
        with tempfile.TemporaryFile() as output:
            self.output, self.told = os.dup(output.fileno()), 0
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=base,
                env={
                    **os.environ,
                    **environment,
                    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                },
                stdin=subprocess.PIPE,  # it stops when this closes
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.guard = guard(self.process.pid)
        return self.look(0.0)

    def look(self, wait: float = WAIT) -> Answer:
        """Waits up to so many seconds for the worker's end, and tells how things stand."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        code = self.process.returncode
        said = os.pread(self.output, CHUNK, self.told)
        self.told += len(said)
        # An end is told with the last of its words, however many those are.
        return worker_id(self.process.pid), None if len(said) == CHUNK else code, said

    def stop(self) -> None:
        """Tells the worker to hand its trial back."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def clear(self) -> None:
        """Kills what is left of the worker's process group."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        assert self.guard is not None
        self.process.stdin.close()
        self.guard.close()
        os.close(self.output)
        self.process = None
