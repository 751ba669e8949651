"""Notices to people at a new best trial, at a halt and at the end, by an apprise URL or a command.

A thread sends them, so that the study does not wait for a service that is slow or away. A notice
that cannot be sent becomes a line in the log. A URL often holds a secret: it comes from the command
line or the environment, is in no file, and is never shown.
"""

import importlib
import logging
import shlex
import shutil
import subprocess
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.errors import raise_if_any
from studyloom.extras.trackers.projection import Feed
from studyloom.installation import pip_install
from studyloom.json_text import to_json
from studyloom.text import one_line, printable
from studyloom.views.progress import Progress
from studyloom.views.words import (
    describe_stored_result,
    format_parameters,
    format_trial_values,
)

BEST_INTERVAL = 900.0  # seconds between two notices of a new best
COMMAND_LIMIT = 60.0  # seconds that a command may take
END_LIMIT = 30.0  # seconds that a command waits at its end for notices that are not sent yet
MAX_SCHEME_LENGTH = 20  # characters of a URL's scheme in a message
log = logging.getLogger(__name__)


class Notices:
    """Sends the notices of one command.

    Args:
        targets: apprise URLs, and commands, each of which gets the notice as JSON on its standard
            input and the subject as its last argument.

    Raises:
        ConfigError: some targets cannot be used; it names them all. They are checked here because
            otherwise the first notice, hours later, would be lost.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        errors = []
        for target in targets:
            error = error_in(target)
            if error is not None:
                errors.append(error)
        raise_if_any(errors)
        self._targets = list(targets)
        self._best_sent_at = -BEST_INTERVAL  # when the last notice of a new best was sent
        self._announced_best: int | None = None  # the number of a trial that needs no notice
        self._progress: Progress | None = None  # at the last call
        self._feed = Feed("notify")

    def __call__(self, progress: Progress) -> None:
        """Sends a notice if the search has halted, or has a new best trial, since the last call.

        The first call sends nothing: it shows the state from before the command. A new best trial
        is announced at most every BEST_INTERVAL seconds.
        """
        last_progress = self._progress
        self._progress = progress
        best = progress.search.best
        if last_progress is None:
            if best is not None:
                self._announced_best = best.number
            return
        if progress.halted is not None and progress.halted != last_progress.halted:
            self._put(progress, "halted", progress.halted, reason=progress.halted)
        is_due = time.monotonic() - self._best_sent_at >= BEST_INTERVAL
        if best is not None and best.number != self._announced_best and is_due:
            self._announced_best = best.number
            self._best_sent_at = time.monotonic()
            self._put_best(progress, best)

    def finish(self, code: int, reason: str | None) -> None:
        """Sends how the command has ended, and waits for a while until all is sent.

        Args:
            code: the exit code of the command.
            reason: why the exit code is not 0.
        """
        if self._progress is not None:
            self._put_end(self._progress, code, reason)
        self._feed.close(END_LIMIT)

    def _put_best(self, progress: Progress, best: FrozenTrial) -> None:
        """Hands over the notice of a new best trial."""
        subject = f"best {progress.search.metric} {format_trial_values(best)}"
        trial = f"trial {best.number}: {format_parameters(best.params)}"
        body = f"{trial}\n{progress.stage_text}, {progress.eta_text}"
        value = None
        if best.values:
            value = best.values[0]
        self._put(progress, subject, body, trial=best.number, value=value, params=best.params)

    def _put_end(self, progress: Progress, code: int, reason: str | None) -> None:
        """Hands over the notice of the command's end."""
        result = progress.result
        if result is not None:
            summary = describe_stored_result(result)
        else:
            summary = progress.stage_text
        if code == 0:
            subject = summary
        else:
            subject = f"ended with exit code {code}"
        body = reason or summary
        self._put(progress, subject, body, exit_code=code, reason=reason, result=result)

    def _put(self, progress: Progress, subject: str, body: str, **fields: object) -> None:
        """Hands a notice to the thread that sends it.

        Args:
            fields: further fields of the JSON that commands get.
        """
        notice = {"study": progress.search.name, "subject": subject, "body": body, **fields}
        self._feed.put(partial(self._send, notice))

    def _send(self, notice: dict[str, Any]) -> None:
        """Sends a notice to all targets, and logs each that fails."""
        for target in self._targets:
            try:
                failure = send(target, notice)
            except Exception as error:  # its message is not logged: it may hold a URL's secret
                failure = type(error).__name__
            if failure is not None:
                log.warning("notify: %s: %s", name_of(target), failure)


def is_url(target: str) -> bool:
    """Returns True for a URL of apprise, and False for a command."""
    return "://" in target.split(" ", 1)[0]


def name_of(target: str) -> str:
    """Names a target without its secrets: the scheme of its URL, or the program."""
    if is_url(target):
        scheme, _, _ = target.partition("://")
        return one_line(f"{scheme[:MAX_SCHEME_LENGTH]}://…")
    program = shlex.split(target)[0]
    return one_line(program)


def error_in(target: str) -> str | None:
    """Returns why a target cannot be used; None if it can."""
    if is_url(target):
        return _find_error_in_url(target)
    return _find_error_in_command(target)


def _find_error_in_command(command: str) -> str | None:
    """Returns why a command cannot be run; None if it can."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        return f"notify: the command cannot be read: {error}"
    program = ""
    if arguments:
        program = arguments[0]
    if shutil.which(program) is not None:
        return None
    name, _, _ = one_line(program).partition(":")  # what follows a colon may be a secret
    fix = "name a program, or a URL of apprise such as ntfy://topic"
    return f"notify: {name}: there is no such program; {fix}"


def _find_error_in_url(url: str) -> str | None:
    """Returns why apprise cannot use a URL; None if it can."""
    try:
        with warnings.catch_warnings():  # apprise imports all its plugins now, and some warn
            warnings.simplefilter("ignore")
            service = load_apprise().Apprise.instantiate(url)
    except ImportError:
        return f"notify: a URL needs the extra notify: {pip_install('notify')}"
    if service is None:
        return f"notify: {name_of(url)}: apprise knows no such URL; see apprise --details"
    return None


def load_apprise() -> Any:
    """Imports apprise, and keeps it from writing URLs to the log."""
    apprise = importlib.import_module("apprise")
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    return apprise


def send(target: str, notice: dict[str, Any]) -> str | None:
    """Sends a notice to a target; returns why it was refused, or None if it was accepted."""
    subject = one_line(f"{notice['study']}: {notice['subject']}")
    subject = subject.lstrip("-")  # a command would take it for an option
    if is_url(target):
        return _send_to_url(target, subject, printable(notice["body"]))
    return _send_to_command(target, subject, to_json(notice))


def _send_to_url(url: str, subject: str, body: str) -> str | None:
    """Sends a notice to a service; returns why it was refused."""
    apprise = load_apprise()
    service = apprise.Apprise()
    service.add(url)
    # Marked as plain text, since a service would otherwise render HTML or Markdown in it.
    plain = apprise.NotifyFormat.TEXT
    is_accepted = service.notify(title=subject, body=body, body_format=plain)
    if not is_accepted:
        return "the service did not accept the notice"
    return None


def _send_to_command(command: str, subject: str, document: str) -> str | None:
    """Runs a command with the notice as JSON on standard input; returns how it failed."""
    process = subprocess.run(
        [*shlex.split(command), subject],
        input=document.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_LIMIT,
    )
    if process.returncode != 0:
        return f"the command has ended with exit code {process.returncode}"
    return None
