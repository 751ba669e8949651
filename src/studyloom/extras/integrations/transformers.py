"""A Hugging Face Trainer as the loop of a study: its evaluations are reported and may end a trial.

`run.checkpoint` makes sure that this study has written the files that the trainer resumes from.
"""

from pathlib import Path
from typing import Any

from studyloom.extras.integrations import Validations
from studyloom.installation import pip_install
from studyloom.objectives.loop_run import Run

try:
    from transformers import TrainerCallback, set_seed
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; {pip_install('transformers')}") from None


class StudyloomCallback(TrainerCallback):
    """Reports each evaluation to a run; winner.pt gets the state of the model, as `model`.

        trainer = Trainer(..., callbacks=[StudyloomCallback(run, "eval_accuracy")])
        trainer.train(resume_from_checkpoint=run.checkpoint)
        return run.value

    Args:
        run: the run of the trial; the trainer gets its `dir` as `output_dir`, and its seed.
        value: the name of the value among the metrics; the others are reported too.
    """

    def __init__(self, run: Run, value: str) -> None:
        self._validations = Validations(
            run, monitored=value, trainer="the trainer", advice="set eval_strategy='epoch'"
        )

    def on_init_end(self, args: Any, state: object, control: object, **kwargs: object) -> None:
        """Sets the trainer's folder and seed to those of the trial."""
        args.output_dir = str(self._validations.run.dir)
        args.seed = self._validations.run.seed
        set_seed(args.seed)  # the trainer has just set the seed of its arguments
        # With a limit of 1 the trainer would remove the last state before the run has the next one.
        args.save_total_limit = max(args.save_total_limit or 2, 2)

    def on_train_begin(self, args: Any, state: Any, control: object, **kwargs: Any) -> None:
        self._validations.run.keep_at_end(model=kwargs["model"])
        self._validations.begin(_count_evaluations(args, state))

    def on_evaluate(self, args: object, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports the metrics of an evaluation, and has the trainer save its state afterwards."""
        if state.global_step == 0:  # an evaluation before the first step is not reported
            return
        metrics = {}
        for name, value in kwargs["metrics"].items():
            describes_evaluation = name.endswith(("_runtime", "_per_second", "epoch"))
            if not describes_evaluation:
                metrics[name] = value
        self._validations.report(metrics)
        if self._validations.has_report and not self._validations.is_last:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: object, **kwargs: object) -> None:
        self._validations.finish(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self._validations.finish()  # an evaluation that save_strategy="best" has not saved

    def on_train_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self._validations.end()


def _count_evaluations(args: Any, state: Any) -> int | None:
    """Returns how many evaluations a training has; None if that is not known."""
    if args.eval_delay:  # the first evaluations are left out
        return None
    strategy = args.eval_strategy.value
    if strategy == "epoch" and args.max_steps <= 0:
        return state.num_train_epochs or None
    if strategy == "steps":
        interval = state.eval_steps or state.max_steps  # without a number, one evaluation
        count = state.max_steps // interval  # 0 if the training is shorter than the interval
        return count or None
    return None
