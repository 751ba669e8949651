"""The `studyloom` command: writes, runs and shows studies, and works with what they have found.

A study's own module runs it too: `python -m studies.mnist`. What each command does is in the layer
`commands`.
"""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress

from studyloom.commands.options import replace_unencodable
from studyloom.commands.parser import make_parser
from studyloom.error_display import print_errors
from studyloom.errors import StudyloomError, messages_of
from studyloom.processes import collect_as_usual, collect_rarely, discard_output, open_streams
from studyloom.text import PrintableFormatter, mask_passwords


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of `studyloom`.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0; 1 if a replay differs, or a training or test has failed; 2 after another
        error; each error with a line that says what is wrong; 130 after Ctrl-C; what
        `status --check`, `stop` and `pause` return.
    """
    open_streams()
    replace_unencodable()
    collect_rarely()
    last_resort = logging.lastResort  # writes what no handler takes
    if last_resort is not None:
        last_resort.setFormatter(PrintableFormatter())
    arguments = make_parser().parse_args(argv)
    try:
        code = arguments.act(arguments) or 0
        sys.stdout.flush()  # here, where an error of a full disk is printed
        return code
    except KeyboardInterrupt:
        return 0 if getattr(arguments, "watch", False) else 130
    except BrokenPipeError:  # the reader of the pipe has gone
        discard_output()
        return 0
    except (StudyloomError, ValueError, OSError) as error:
        code = 2
        if isinstance(error, StudyloomError) and not isinstance(error, ValueError):
            code = error.exit_code
        if getattr(arguments, "json", False):
            errors = messages_of(error, str(error))
            document = {"errors": [*map(mask_passwords, errors)], "exit_code": code}
            with suppress(OSError):
                print(json.dumps(document), flush=True)
        print_errors(error)
        return code
    finally:
        collect_as_usual()
