"""A Hugging Face Trainer as the loop of a study: its evaluations are reported and may end a trial.

`run.checkpoint` makes sure that this study has written what the trainer resumes from.
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
        run: of the trial, whose `dir` becomes the trainer's `output_dir`, and whose seed its own.
        value: the name of the value among the metrics; the others are reported too.
    """

    def __init__(self, run: Run, value: str) -> None:
        self._steps = Validations(run, value, "the trainer", "set eval_strategy='epoch'")

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.output_dir, args.seed = str(self._steps.run.dir), self._steps.run.seed
        set_seed(args.seed)  # the trainer has just set that of its arguments
        args.save_total_limit = max(args.save_total_limit or 2, 2)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.run.keep_at_end(model=kwargs["model"])
        epochs = None if args.max_steps > 0 else state.num_train_epochs
        steps = state.max_steps // (state.eval_steps or state.max_steps)
        count = {"epoch": epochs, "steps": steps}.get(args.eval_strategy.value)
        self._steps.begin(None if args.eval_delay else count or None)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:  # not before the first step
            timing = ("_runtime", "_per_second", "epoch")
            metrics = kwargs["metrics"].items()
            self._steps.report({k: v for k, v in metrics if not k.endswith(timing)})
            control.should_save |= self._steps.reported and not self._steps.is_last

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.finish(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.finish()  # save_strategy="best" does not save them all

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.end()
