"""The `studyloom` command: writes, runs and shows studies, and works with their results.

A study's own module runs it too: `python -m studies.mnist`. The layer `commands` has what each
command does.
"""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress

from studyloom.commands.options import replace_unencodable
from studyloom.commands.parser import make_parser
from studyloom.error_display import print_errors
from studyloom.errors import StudyloomError, list_messages
from studyloom.processes import collect_as_usual, collect_rarely, discard_output, open_streams
from studyloom.text import PrintableFormatter, mask_passwords


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of `studyloom`.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code: 0; 1 if a replay differs, or a training or test has failed; 2 after another
        error, each with a line that says what is wrong; 130 after Ctrl-C. `status --check`, `stop`
        and `pause` return further codes.
    """
    open_streams()
    replace_unencodable()
    collect_rarely()
    last_resort = logging.lastResort  # the handler of records for which there is no other one
    if last_resort is not None:
        last_resort.setFormatter(PrintableFormatter())
    arguments = make_parser().parse_args(argv)
    options = vars(arguments)
    try:
        code = arguments.act(arguments) or 0
        sys.stdout.flush()  # an error of a full disk comes here, where it is printed, not at exit
        return code
    except KeyboardInterrupt:
        if options.get("watch"):  # Ctrl-C is how one ends `--watch`
            return 0
        return 130
    except BrokenPipeError:  # the reader of the pipe has gone
        discard_output()
        return 0
    except (StudyloomError, ValueError, OSError) as error:
        code = 2
        if isinstance(error, StudyloomError) and not isinstance(error, ValueError):
            code = error.exit_code
        if options.get("json"):
            messages = [mask_passwords(message) for message in list_messages(error, str(error))]
            document = {"errors": messages, "exit_code": code}
            with suppress(OSError):
                print(json.dumps(document), flush=True)
        print_errors(error)
        return code
    finally:
        collect_as_usual()
