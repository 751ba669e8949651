"""Storms: signals to whatever belongs to a run, and then the same command to its end.

Each hits the processes of a whole run at random: commands, fork servers, workers and their guards.
A command that has ended is started again at once. What is left must be what an undisturbed run
leaves: exactly N trials with the same values, the same re-evaluations, the same test of the winner.
"""

import json
import os
import random
import re
import signal
from contextlib import suppress
from pathlib import Path

import harness
import optuna
import pytest
from runs import EPOCHS, NEVER, STUDY, TRIALS, Run, kill, nap

from studyloom.storage.opening import open_study

WINNER = (
    *(override for override in STUDY if override != "winner.enabled=false"),
    *("winner.top=2", "winner.seeds=2", "data._target_=counted.Digits"),
    "study.max_attempts=99",  # a storm may meet the same trial again and again
)
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WEIGHTS = (3, 3, 3, 1, 1)
# How a command may end that a storm has met: with 1 or 2 only if its workers were
# killed again and again as they came, and by SIGABRT only if a Ctrl-C met the import of torch.
ENDS = {0, 1, 2, 129, 130, 143, -signal.SIGABRT, *(-number for number in SIGNALS)}
KILLED_AS_THEY_CAME = (
    "workers die before they claim a trial",
    "error: the process of this command ended with signal",  # which its parent says
    # Python's, of a Ctrl-C before any line of ours.
    "Could not import runpy module",
    "Failed to import the site module",
)
# Python's traceback of a KeyboardInterrupt that ends a process, or comes while it ends, or while it
# handles another error, as it does where it makes an enumeration; a line of source may be empty.
INTERRUPTED = re.compile(
    r"^Traceback \(most recent call last\):\n(?:(?:[ \t].*|SystemExit.*|\w+Error.*|During .*)?\n"
    r"|Traceback \(most recent call last\):\n)*KeyboardInterrupt.*$",
    re.MULTILINE,
)
# Of one that SIGKILL met as it was written: no line says what was raised.
CUT = re.compile(r"^Traceback \(most recent call last\):\n(?: +\S.*\n)* *\n", re.MULTILINE)


def storm_run(folder):
    """A run with a winner, and a file that has a line for each opening of the test set."""
    run = Run(folder, f"sqlite:///{folder}/study.db", WINNER)
    folder.parent.mkdir(exist_ok=True)
    opened = folder.with_name("opened")
    run.environment["STUDYLOOM_TEST_USES"] = str(opened)
    run.environment["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parent}"
    return run, opened


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """What an undisturbed run leaves."""
    run, opened = storm_run(tmp_path_factory.mktemp("calm") / "run")
    run.end(run.start(), 0)
    return left_behind(run, opened)


def left_behind(run, opened):
    """What a run has left that must always be the same, after checks of all that must hold."""
    studies, uses = read_studies(run.url)
    result = json.loads((run.folder / "winner.json").read_text())
    noted = len(opened.read_text().splitlines())
    # More were counted than made if a signal came between the two.
    assert 1 <= noted <= uses == result["test"]["test_set_uses"]
    return studies, result["winner"], result["test"] | {"test_set_uses": None}


def read_studies(url):
    """The outcomes of each study of a run, and how often the test set was opened."""
    stored = open_study(url, "mnist", deadline=30.0)
    harness.check(stored, TRIALS, epochs=EPOCHS)
    names = [study.study_name for study in stored.storage.get_all_studies()]
    outcomes = {}
    for name in names:
        stage = open_study(url, name, deadline=30.0)
        trials = stage.trials()
        assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in trials), name
        assert stage.ledger.counts() == {"free": 0, "held": 0, "done": len(trials)}, name
        outcomes[name] = harness.outcomes(stage)
        stage.close()
    uses = stored.test_uses()
    stored.close()
    return outcomes, uses


class Storm:
    """Signals to the processes of a run, whose command is started again when it has ended."""

    def __init__(self, run, seed):
        self.run, self.fate = run, random.Random(seed)
        self.stopped = []
        self.sent = 0
        self.start()

    def start(self):
        """Starts the command; one of three is hit before it has workers, however slow it is."""
        self.process = self.run.start()
        self.early = self.fate.random() < 1 / 3

    def blow(self, signals):
        """Sends so many signals, or fewer if the run has come to its end before."""
        while self.sent < signals:
            nap(self.fate.uniform(0.02, 0.2))
            self.wake(0.3)
            if (code := self.process.poll()) is not None:
                self.gather()
                if code == 0:
                    return
                self.start()
                continue
            at_work, victims = self.run.workers(), self.victims()
            if victims and (at_work or self.early):
                self.early = False
                victim, (number,) = self.fate.choice(victims), self.fate.choices(SIGNALS, WEIGHTS)
                with suppress(ProcessLookupError):
                    os.kill(victim, number)
                    self.sent += 1
                    if number == signal.SIGSTOP:
                        self.stopped.append(victim)
        self.wake(1.0)
        self.process.terminate()
        self.gather()

    def victims(self):
        """Everything that belongs to the run, and workers twice."""
        return [*self.run.processes(), *self.run.workers()]

    def wake(self, chance):
        """Lets each stopped process go on, with a chance."""
        awake = [pid for pid in self.stopped if self.fate.random() < chance]
        kill(awake, signal.SIGCONT)
        self.stopped = [pid for pid in self.stopped if pid not in awake]

    def gather(self):
        """Waits for the end of a command, with what it printed."""
        self.wake(1.0)  # a stopped process cannot end, and may hold the command's output
        out, err = self.process.communicate(timeout=60)
        code, printed = self.process.returncode, out + err
        assert code in ENDS, (code, printed)
        assert code not in (1, 2) or any(words in printed for words in KILLED_AS_THEY_CAME), printed
        assert code != -signal.SIGABRT or "what():  KeyboardInterrupt" in printed, printed
        check_words(printed)


def check_words(printed):
    """Checks I7, but for a second signal, or one that comes before any line of ours runs."""
    rest = CUT.sub("", INTERRUPTED.sub("", printed))
    assert not (match := NEVER.search(rest)), f"I7: {match}\n{rest}"


def weather(tmp_path, seed, signals, calm):
    """Sends so many signals to one run after the other, each of which must end like the calm."""
    sent = 0
    while sent < signals:
        seed += 1000
        run, opened = storm_run(tmp_path / str(seed) / "run")
        storm = Storm(run, seed)
        try:
            storm.blow(signals - sent)
            run.until_gone(60)
            out, err = run.start().communicate(timeout=300)
            assert run.latest.returncode == 0, (out, err)
            check_words(out + err)
            check_words(run.logs())
            run.until_gone(20)  # I6
            assert left_behind(run, opened) == calm
        finally:
            kill(run.processes())
        sent += storm.sent


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 6))
def test_storms_of_a_thousand_signals_change_nothing(tmp_path, seed, calm):
    weather(tmp_path, seed, 100, calm)
