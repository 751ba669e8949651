"""Kills the process group of a worker when the process that started it ends, however it ends.

Only the standard library is imported: the actors of Ray use this module.
"""

import contextlib
import os
import subprocess

# Standard input of a background command is /dev/null, therefore descriptor 3.
WATCH = """\
exec 3<&0
(read _ <&3 && exit; sleep "$1"; kill -9 "-$0") >/dev/null &
echo $!
"""


class GroupGuard:
    """A shell that kills a process group some seconds after this process has ended.

    The shell is not a child of this process, because Ray kills the children of an actor together
    with it.

    Args:
        group: the number of the process group.
        grace: seconds between the end of this process and the kill.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, group: int, grace: float = 0.0) -> None:
        command = ["sh", "-c", WATCH, str(group), f"{grace:g}"]
        shell = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # an open copy would hide the end of our output
            start_new_session=True,
        )
        assert shell.stdin is not None
        assert shell.stdout is not None
        with shell.stdout as output:
            answer = output.readline()
        shell.wait()
        self._line = shell.stdin  # closes when this process ends
        if not answer:
            raise OSError("the guard of a worker cannot be started: no more processes are allowed")
        self.pid = int(answer)

    def stand_down(self) -> None:
        """Ends the guard. Its group's number may be used again, so that nothing is killed later."""
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the guard
            self._line.write(b"stand down\n")
            self._line.flush()
        with contextlib.suppress(BrokenPipeError):
            self._line.close()
        with contextlib.suppress(ChildProcessError):  # where orphans become ours, as in a container
            os.waitpid(self.pid, 0)
