"""A command as it is, as the objective of a study: what it prints is read line by line."""

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from studyloom.config.values import flatten, value_at
from studyloom.extras.integrations.grouped_process import GroupedProcess
from studyloom.extras.integrations.output import Log, Output, earlier_lines, pattern_mistakes
from studyloom.extras.integrations.words import (
    fill,
    names_in,
    source_digests,
    space_mistakes,
    word_mistakes,
)
from studyloom.launch.supervisor import WorkerExit
from studyloom.space.tree import Space
from studyloom.text import mask_passwords

OURS = ("seed", "trial", "checkpoint_dir")
INTERNAL = ("STUDYLOOM_WORKER", "STUDYLOOM_LINE")  # what our own processes tell one another


@dataclass(frozen=True)
class Command:
    """Runs a command for each trial, and takes its value from what it prints.

    Args:
        run: the command, such as `python main.py --lr {lr}`. A name in braces is a key of `params`,
            or `seed`, `trial` or `checkpoint_dir`.
        value: a regular expression. What its group `value` finds in a line is reported; the last
            is the value of the trial.
        step: the same for the step of a value, with the group `step`, in its line or one before;
            None counts the values, from 1.
    """

    run: str
    value: str
    step: str | None = None

    resumes: ClassVar[bool] = False  # what it keeps is its own affair

    def check(self, config: DictConfig, space: Space) -> list[str]:
        """Returns every mistake that can be seen before the command is run."""
        params = _params(config)
        mistakes = [*word_mistakes(self.run, [*params, *OURS]), *space_mistakes(self.run, space)]
        ours = [name for name in OURS if name in params]
        mistakes += [f"params.{name}: {{{name}}} is the trial's own; rename it" for name in ours]
        ranks = OmegaConf.select(config, "launcher.ranks", default=1)
        if isinstance(ranks, int) and ranks > 1:
            mistakes.append(
                f"launcher.ranks={ranks}: each rank would run the command; leave it out, and start "
                "the processes of a trial in the command, such as run: 'torchrun main.py'"
            )
        mistakes += pattern_mistakes("objective.value", self.value, "value")
        if self.step is not None:
            mistakes += pattern_mistakes("objective.step", self.step, "step")
        elif "checkpoint_dir" in names_in(str(self.run)):
            mistakes.append(
                "objective.step must be set, since the command uses {checkpoint_dir}: when it goes "
                "on from there, the values that it prints cannot be counted from 1"
            )
        return mistakes

    def code(self) -> dict[str, str]:
        """Returns the digests of the project's files that the command names."""
        return source_digests(self.run)

    def __call__(self, config: DictConfig, run: Any) -> float:
        """Runs the command to its end, and returns the last value.

        Raises:
            CommandFailed: it printed no value, or ended with another code than 0.
        """
        record, output = run.dir / ".output", Output(self.value, self.step, run)
        if self.step is None:  # it begins anew, as the counting does
            shutil.rmtree(run.dir, ignore_errors=True)
            run.dir.mkdir(parents=True, exist_ok=True)
        for line in earlier_lines(record):  # of attempts that were cut short
            output.take(line)
        ours = {"seed": run.seed, "trial": run.trial, "checkpoint_dir": run.dir.absolute()}
        words = fill(self.run, _params(config) | ours)
        told = {f"STUDYLOOM_{name.upper()}": str(value) for name, value in ours.items()}
        inherited = {name: os.environ[name] for name in os.environ if name not in INTERNAL}
        # Python would hold back what it prints into a file.
        environment = inherited | {"PYTHONUNBUFFERED": "1"} | told
        stage = "" if run.stage == "search" else f"{run.stage}-"
        path = Path(config.run_dir, "logs", f"{stage}trial-{run.trial}.log")
        with Log(path) as log, GroupedProcess(words, environment, record) as process:
            log.write(f"$ {mask_passwords(shlex.join(words))}")
            for line in process.lines():
                log.write(line)
                output.take(line)
            code = process.code
        if code:
            raise output.failed(f"the command ended with {WorkerExit(code)}")
        if output.reported is None:
            raise output.failed(f"objective.value found nothing, with the pattern {self.value}")
        return output.reported[1]


def _params(config: DictConfig) -> dict[str, Any]:
    return dict(flatten(value_at(config, "params") or {})) if config.params else {}
