"""Notices to people: by an apprise URL or a command, at the end, at a halt, at a new best.

They are sent by a thread, so that a service that is slow or away holds nothing up. What fails is a
line in the log. A URL often holds a secret: it comes from the command line or the environment, is
in no file, and is never shown.
"""

import importlib
import json
import logging
import os
import queue
import re
import shlex
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from studyloom.errors import ConfigError
from studyloom.text import one_line, printable
from studyloom.views.events import finite
from studyloom.views.progress import Progress, describe_answer, eta_words, stage_words
from studyloom.views.snapshot import format_trial_values
from studyloom.views.terminal import format_parameters

BEST_INTERVAL = 900.0  # seconds between two notices of a new best
COMMAND_LIMIT = 60.0  # seconds that a command may take
LAST = 30.0  # seconds for what is still to be sent when the command ends
WAITING = 16  # notices that may wait to be sent; later ones are left out
log = logging.getLogger(__name__)


class Notices:
    """Sends what people want to know of a job.

    Args:
        targets: apprise URLs, and commands, each of which gets the notice as JSON on its standard
            input and the subject as its last argument.

    Raises:
        ConfigError: all targets that cannot be used.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = list(targets)
        check_targets(self._targets)
        self._best: int | None = None
        self._best_at = -BEST_INTERVAL
        self._looked = False
        self._halted: str | None = None
        self._progress: Progress | None = None
        self._queue: queue.Queue[tuple[str, str, dict[str, Any]] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    def __call__(self, progress: Progress) -> None:
        """Sends a notice of a new best, and of a halt."""
        self._progress = progress
        best = progress.search.best
        number = None if best is None else best.number
        if not self._looked:  # what was there before is no news
            self._looked, self._best, self._halted = True, number, progress.halted
            return
        if progress.halted is not None and progress.halted != self._halted:
            self._halted = progress.halted
            self._put("halted", progress.halted, {"reason": progress.halted})
        late = time.monotonic() - self._best_at >= BEST_INTERVAL
        if best is not None and number != self._best and late:
            self._best, self._best_at = number, time.monotonic()
            value = format_trial_values(best)
            lines = [
                f"trial {number}: {format_parameters(best.params)}",
                f"{stage_words(progress)}, {eta_words(progress)}",
            ]
            told = {"trial": number, "value": (best.values or [None])[0], "params": best.params}
            self._put(f"best {progress.search.metric} {value}", "\n".join(lines), told)

    def finish(self, code: int, reason: str | None) -> None:
        """Sends how the command has ended, and waits until all is sent, for a while.

        Args:
            code: the exit code.
            reason: why, in words, if it is not 0.
        """
        progress = self._progress
        if progress is not None:
            answer = progress.answer
            words = describe_answer(answer) if answer is not None else stage_words(progress)
            subject = words if code == 0 else f"ended with exit code {code}"
            told = {"exit_code": code, "reason": reason, "answer": answer}
            self._put(subject, reason or words, told)
        with_end = time.monotonic() + LAST
        try:
            self._queue.put(None, timeout=LAST)
        except queue.Full:
            return
        self._thread.join(max(0.0, with_end - time.monotonic()))

    def _put(self, subject: str, body: str, told: Mapping[str, Any]) -> None:
        assert self._progress is not None
        # A command would take what begins with a dash for an option.
        name = one_line(self._progress.search.name).lstrip("-")
        document = {"study": self._progress.search.name, "subject": subject, "body": body, **told}
        try:
            self._queue.put_nowait((one_line(f"{name}: {subject}"), body, document))
        except queue.Full:
            log.warning("notify: %d notices wait to be sent; one is left out", WAITING)

    def _send_all(self) -> None:
        while (notice := self._queue.get()) is not None:
            subject, body, document = notice
            for target in self._targets:
                try:
                    send(target, subject, body, document)
                except Exception as error:  # of a service, or of apprise: never of the study
                    log.warning("notify: %s: %s", kind_of(target), describe_failure(error, target))


def is_url(target: str) -> bool:
    """Whether a target is a URL of apprise, and not a command."""
    return "://" in target.split(" ", 1)[0]


def kind_of(target: str) -> str:
    """Names a target without its secrets: the scheme of its URL, or the program."""
    if is_url(target):
        return one_line(f"{target.partition('://')[0][:20]}://…")
    return one_line((shlex.split(target) or [""])[0])


def check_targets(targets: Sequence[str]) -> None:
    """Raises ConfigError for all targets that cannot be used: nothing would be sent hours later."""
    mistakes = []
    for target in targets:
        if is_url(target):
            mistakes += check_url(target)
            continue
        try:
            program = (shlex.split(target) or [""])[0]
        except ValueError as error:
            mistakes.append(f"notify: the command cannot be read: {error}")
            continue
        if shutil.which(program) is not None:
            continue
        if scheme := re.match(r"([\w+.-]+)[^:]*:", program):  # the rest may be a secret
            mistakes.append(
                f"notify: {scheme[1]}:… is neither a program nor a URL; write {scheme[1]}://…"
            )
        else:
            mistakes.append(
                f"notify: {one_line(program)}: there is no such program; name a program, or a URL "
                "of apprise such as ntfy://topic"
            )
    if mistakes:
        raise ConfigError(mistakes)


def check_url(url: str) -> list[str]:
    """Returns what is wrong with a URL; nothing if apprise can use it."""
    try:
        with warnings.catch_warnings():  # of the plugins that it imports now, all of them
            warnings.simplefilter("ignore")
            service = load_apprise().Apprise.instantiate(url)
    except ImportError:
        return ["notify: a URL needs the extra notify: pip install 'studyloom[notify]'"]
    if service is None:
        return [f"notify: {kind_of(url)}: apprise knows no such URL; see apprise --details"]
    return []


def load_apprise() -> Any:
    """Imports apprise, an extra, and keeps it from writing URLs to the log."""
    apprise = importlib.import_module("apprise")
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    return apprise


def send(target: str, subject: str, body: str, document: Mapping[str, Any]) -> None:
    """Sends a notice.

    Args:
        target: an apprise URL, or a command.
        subject: in one line.
        body: in some lines.
        document: the same for programs.

    Raises:
        RuntimeError: the service has refused it, or the command has failed.
        OSError: the command cannot be started.
        subprocess.TimeoutExpired: it takes too long; it was ended.
    """
    if is_url(target):
        apprise = load_apprise()
        service = apprise.Apprise()
        service.add(target)
        # As plain text, or a service that shows HTML or Markdown would render it.
        plain = apprise.NotifyFormat.TEXT
        if not service.notify(title=subject, body=printable(body), body_format=plain):
            raise RuntimeError("the service has not taken the notice")
        return
    text = json.dumps(finite(document), default=str)
    done = subprocess.run(
        [*shlex.split(target), subject],
        input=text.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_LIMIT,
        env={**os.environ},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the command has ended with exit code {done.returncode}")


def describe_failure(error: Exception, target: str) -> str:
    """Says why a notice was not sent, without what the target holds."""
    if isinstance(error, RuntimeError) and not is_url(target):
        return str(error)
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the command takes longer than {COMMAND_LIMIT:g} s"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, RuntimeError):
        return "the service has not taken the notice"
    return type(error).__name__
