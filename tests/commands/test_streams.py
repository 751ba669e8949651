"""Standard streams that fail."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is full")
@pytest.mark.parametrize(
    ("failing", "other", "told"),
    [
        ("stderr", "stdout", ""),
        (
            "stdout",
            "stderr",
            "standard output: No space left on device; the study goes on without it\n",
        ),
    ],
)
def test_a_standard_stream_that_fails_silences_itself_and_not_the_other(failing, other, told):
    """With --json the result is on standard output, and all else on standard error."""
    code = (
        "import sys\nfrom studyloom.commands.streams import LastingOutput\n"
        f"output = LastingOutput(sys.{failing})\n"
        "print('a table', file=output, flush=True)\nprint('another', file=output, flush=True)\n"
        f"print('result', file=sys.{other})\n"
    )
    with open("/dev/full", "w") as full:
        streams = {failing: full, other: subprocess.PIPE}
        done = subprocess.run([sys.executable, "-c", code], text=True, check=True, **streams)
    assert getattr(done, other) == f"{told}result\n"
