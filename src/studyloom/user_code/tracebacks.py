"""Tracebacks with the frames of the user's code only."""

from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException

from studyloom.user_code.importing import is_users_code

# The file name of a function that a script has passed to its workers: no module has its code.
PASSED_FUNCTION = "<dynamic-code>"


def format_users_traceback(error: BaseException) -> str:
    """Formats a traceback without the frames of Python, packages and studyloom.

    An exception that has no frame of the user keeps all of its frames, as do its causes.
    """
    report = TracebackException.from_exception(error)
    _keep_users_frames(report)
    return "".join(report.format()).rstrip()


def _keep_users_frames(report: TracebackException) -> None:
    """Removes other frames than the user's from an exception and from what caused it."""
    users_frames = []
    for frame in report.stack:
        if _is_users_frame(frame):
            users_frames.append(frame)
    if users_frames:
        report.stack = StackSummary.from_list(users_frames)
    for earlier in (report.__cause__, report.__context__):
        if earlier is not None:
            _keep_users_frames(earlier)


def _is_users_frame(frame: FrameSummary) -> bool:
    """Returns whether a frame is of a file of the user, or of a function of the user's script."""
    if frame.filename == PASSED_FUNCTION:
        return True
    has_file = frame.filename.startswith("/")  # and not <frozen runpy>
    return has_file and is_users_code(Path(frame.filename))
