"""TODO launch.process_group."""

import subprocess
from typing import IO


def guard(group: int) -> IO[bytes]:
    """Kills a process group once what this gives is closed, as it is when this process ends.

    It is no child of this process: Ray kills those together with an actor.
    """
    script = 'exec 3<&0; (read _ <&3; kill -9 "-$0") & '
    command, quiet = ["sh", "-c", script, str(group)], subprocess.DEVNULL
    shell = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    )
    shell.wait()
    assert shell.stdin is not None
    return shell.stdin
