"""An actor on a node of a Ray cluster: it runs the command of a worker as a separate process.

Only the standard library is imported here, and modules of ours that import nothing else: an actor
takes no second copy of PyTorch. Ray pickles the class by its name; arguments and replies are
strings, numbers and bytes.
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

from studyloom.environment import LINE
from studyloom.processes import signal_group, worker_id
from studyloom.worker.line import Listener

POLL_SECONDS = 0.5  # that a poll waits for the end of the worker, which it reports at once
MAX_OUTPUT_BYTES = 2**20  # of a worker's output in one reply
# The worker's id in the database, its exit code, its output since the last reply, and the messages
# that it has sent to its launcher.
Reply = tuple[str, int | None, bytes, dict[str, str]]


class Actor:
    """Runs one worker at a time, the leader of a process group that ends with this actor."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._listener: Listener
        self._output: IO[bytes]
        self._sent = 0  # bytes of the output that were in a reply

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        package: str,
        log: str,
    ) -> Reply:
        """Starts a worker, after ending one that is still here.

        Args:
            arguments: the arguments of this node's Python.
            environment: the variables that are set for the worker, except its device.
            folder: where the command was started. A node that sees `log` shares the disk of the
                command's host and works there; another one works in its copy of the folder, where
                no path of that host is valid.
            package: the folder that has the package studyloom; relative to `folder` if it is below
                it.
            log: a file that the command has made.
        """
        self.kill()
        shares_disk = Path(log).exists()
        working_folder = Path.cwd()  # Ray's copy of the folder
        if shares_disk:
            working_folder = Path(folder)
        python_path = make_python_path(
            working_folder, package, environment.get("PYTHONPATH", ""), shares_disk=shares_disk
        )

        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._sent = 0
        self._listener = Listener()
        message_descriptor = self._listener.detach()  # the worker writes its messages to it
        variables = {
            **os.environ,
            **environment,
            "PYTHONPATH": python_path,
            LINE.name: str(message_descriptor),
        }
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=working_folder,
            env=variables,
            pass_fds=[message_descriptor],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(message_descriptor)
        return self.poll(0.0)

    def poll(self, seconds: float = POLL_SECONDS) -> Reply:
        """Waits a short time for the worker's end, and returns the worker's state.

        The exit code is returned only with the end of the output, which may take several replies.
        """
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        code = self.process.returncode
        output = os.pread(self._output.fileno(), MAX_OUTPUT_BYTES, self._sent)
        self._sent += len(output)
        if len(output) == MAX_OUTPUT_BYTES:  # there may be more
            code = None
        return worker_id(self.process.pid), code, output, self._listener.listen()

    def stop(self) -> None:
        """Has the worker release its trial and end."""
        if self.process is not None:
            self._listener.request_stop(self.process.pid)

    def kill(self) -> None:
        """Kills the remaining processes of the worker's group."""
        if self.process is not None:
            signal_group(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._listener.close()
            self._output.close()
            self.process = None


def make_python_path(
    working_folder: Path, package: str, path_of_command: str, *, shares_disk: bool
) -> str:
    """Returns the PYTHONPATH of a worker, by which it finds studyloom and the user's modules.

    On a node that shares the disk of the command's host, studyloom is where the command has it. On
    another node it is in Ray's copy of the working folder if it lies there. Otherwise Ray has
    copied it alone, and the PYTHONPATH of this node names that copy.

    Args:
        package: the folder that has the package studyloom; relative to the working folder if it is
            below it.
        path_of_command: the PYTHONPATH of the command, for nodes that share the disk.
    """
    folders = []
    is_in_working_folder = not Path(package).is_absolute()
    if shares_disk or is_in_working_folder:
        folders.append(str(working_folder / package))
    if shares_disk:
        folders.append(path_of_command)
    folders.append(os.environ.get("PYTHONPATH", ""))
    return os.pathsep.join(folder for folder in folders if folder)
