"""The `studyloom` command: writes, runs and shows studies, and works with their results.

A study's own module runs it too: `python -m studies.mnist`. The layer `commands` has what each
command does.
"""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress

from studyloom.commands.options import replace_unencodable_characters
from studyloom.commands.parser import make_parser
from studyloom.error_display import print_errors
from studyloom.errors import StudyloomError, list_messages
from studyloom.processes import (
    collect_garbage_as_usual,
    collect_garbage_rarely,
    discard_output,
    open_closed_streams,
)
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
    open_closed_streams()
    replace_unencodable_characters()
    collect_garbage_rarely()  # the imports of a command make few objects that become garbage
    if logging.lastResort is not None:  # it prints the records that no other handler takes
        logging.lastResort.setFormatter(PrintableFormatter())
    arguments = make_parser().parse_args(argv)
    options = vars(arguments)  # not every command has --watch and --json
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
        code = find_exit_code(error)
        if options.get("json"):
            _print_errors_as_json(error, code)
        print_errors(error)
        return code
    finally:
        collect_garbage_as_usual()


def find_exit_code(error: Exception) -> int:
    """Returns the exit code of a command that ended with an error: 2 if the user can fix it.

    The user can fix a file that cannot be used, and each ValueError, whatever code its class has:
    only a study that loses its database while it runs ends with the code of `StorageLost`.
    """
    if isinstance(error, StudyloomError) and not isinstance(error, ValueError):
        return error.exit_code
    return 2


def _print_errors_as_json(error: Exception, code: int) -> None:
    """Prints the messages of an error on standard output, in the form that `--json` promises."""
    messages = [mask_passwords(message) for message in list_messages(error, str(error))]
    document = {"errors": messages, "exit_code": code}
    with suppress(OSError):  # the output may be closed or full
        print(json.dumps(document), flush=True)
