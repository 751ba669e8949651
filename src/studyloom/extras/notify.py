"""Notices to people: by an apprise URL or a command, at the end, at a halt, at a new best.

A thread sends them, so that a service that is slow or away holds nothing up. What fails is a line
in the log. A URL often holds a secret: it comes from the command line or the environment, is in no
file, and is never shown.
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

from studyloom.errors import refuse
from studyloom.extras.trackers.projection import Feed
from studyloom.installation import pip_install
from studyloom.text import one_line, printable
from studyloom.views.progress import Progress, to_json
from studyloom.views.words import (
    describe_stored_result,
    format_parameters,
    format_trial_values,
)

BEST_INTERVAL = 900.0  # seconds between two notices of a new best
COMMAND_LIMIT = 60.0  # seconds that a command may take
LAST = 30.0  # seconds for what is still to be sent when the command ends
log = logging.getLogger(__name__)


class Notices:
    """Sends the notices of one command.

    Args:
        targets: apprise URLs, and commands, each of which gets the notice as JSON on its standard
            input and the subject as its last argument.

    Raises:
        ConfigError: all targets that cannot be used: nothing would be sent hours later.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        refuse([words for target in targets if (words := error_in(target))])
        self._targets = list(targets)
        self._sent_at = -BEST_INTERVAL  # when a new best was reported
        self._best: int | None = None  # the number of the best trial that was reported last
        self._before: Progress | None = None
        self._feed = Feed("notify")

    def __call__(self, progress: Progress) -> None:
        """Sends a notice of a new best trial or a halt, unless it is from before the command."""
        before, self._before = self._before, progress
        best = progress.search.best
        if before is None:
            self._best = None if best is None else best.number
            return
        if progress.halted is not None and progress.halted != before.halted:
            self._put(progress, "halted", progress.halted, reason=progress.halted)
        late = time.monotonic() - self._sent_at >= BEST_INTERVAL
        if best is not None and best.number != self._best and late:
            self._best, self._sent_at = best.number, time.monotonic()
            subject = f"best {progress.search.metric} {format_trial_values(best)}"
            found = f"trial {best.number}: {format_parameters(best.params)}"
            body = f"{found}\n{progress.stage_text}, {progress.eta_text}"
            value = (best.values or [None])[0]
            self._put(progress, subject, body, trial=best.number, value=value, params=best.params)

    def finish(self, code: int, reason: str | None) -> None:
        """Sends how the command has ended, and waits for a while until all is sent.

        Args:
            reason: why the exit code is not 0.
        """
        progress = self._before
        if progress is not None:
            result = progress.result
            words = progress.stage_text if result is None else describe_stored_result(result)
            subject = words if code == 0 else f"ended with exit code {code}"
            fields = {"exit_code": code, "reason": reason, "result": result}
            self._put(progress, subject, reason or words, **fields)
        self._feed.close(LAST)

    def _put(self, progress: Progress, subject: str, body: str, **fields: Any) -> None:
        notice = {"study": progress.search.name, "subject": subject, "body": body, **fields}
        self._feed.put(partial(self._send, notice))

    def _send(self, notice: dict[str, Any]) -> None:
        for target in self._targets:
            try:
                failure = send(target, notice)
            except Exception as error:  # its words may hold the secret of a URL
                failure = type(error).__name__
            if failure is not None:
                log.warning("notify: %s: %s", name_of(target), failure)


def is_url(target: str) -> bool:
    """Whether a target is a URL of apprise, and not a command."""
    return "://" in target.split(" ", 1)[0]


def name_of(target: str) -> str:
    """Names a target without its secrets: the scheme of its URL, or the program."""
    first = target.split("://")[0][:20] + "://…" if is_url(target) else shlex.split(target)[0]
    return one_line(first)


def error_in(target: str) -> str | None:
    """Returns why a target cannot be used."""
    if not is_url(target):
        try:
            program = (shlex.split(target) or [""])[0]
        except ValueError as error:
            return f"notify: the command cannot be read: {error}"
        if shutil.which(program) is None:  # what follows a colon may be a secret
            shown = one_line(program.split(":")[0])
            way_out = "name a program, or a URL of apprise such as ntfy://topic"
            return f"notify: {shown}: there is no such program; {way_out}"
        return None
    try:
        with warnings.catch_warnings():  # of the plugins that it imports now, all of them
            warnings.simplefilter("ignore")
            usable = load_apprise().Apprise.instantiate(target) is not None
    except ImportError:
        return f"notify: a URL needs the extra notify: {pip_install('notify')}"
    unknown = f"notify: {name_of(target)}: apprise knows no such URL; see apprise --details"
    return None if usable else unknown


def load_apprise() -> Any:
    """Imports apprise, and keeps it from writing URLs to the log."""
    apprise = importlib.import_module("apprise")
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    return apprise


def send(target: str, notice: dict[str, Any]) -> str | None:
    """Sends a notice; returns why it was refused, and None if it was not."""
    # A command would take what begins with a dash for an option.
    subject = one_line(f"{notice['study']}: {notice['subject']}").lstrip("-")
    if is_url(target):
        apprise = load_apprise()
        service = apprise.Apprise()
        service.add(target)
        # As plain text, or a service that shows HTML or Markdown would render it.
        body, plain = printable(notice["body"]), apprise.NotifyFormat.TEXT
        taken = service.notify(title=subject, body=body, body_format=plain)
        return None if taken else "the service did not accept the notice"
    done = subprocess.run(
        [*shlex.split(target), subject],
        input=to_json(notice).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_LIMIT,
    )
    return f"the command has ended with exit code {done.returncode}" if done.returncode else None
