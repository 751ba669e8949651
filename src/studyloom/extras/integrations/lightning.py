"""A Lightning Trainer as the loop of a study: validations are reported, and may end the trial.

Lightning unpickles its checkpoints; `run.checkpoint` makes sure that this study has written them.
"""

from typing import Any

from studyloom.extras.integrations import Validations
from studyloom.installation import pip_install
from studyloom.objectives.loop_run import Run

try:
    from lightning.pytorch.callbacks import Checkpoint
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; {pip_install('lightning')}") from None


class Report(Checkpoint):
    """Reports each validation to a run; winner.pt gets the state of the module, as `module`.

        trainer = Trainer(..., callbacks=[Report(run, "val_acc")])
        trainer.fit(module, data, ckpt_path=run.checkpoint)
        return run.value

    Args:
        run: of the trial, which resumes after its last epoch that ended with a validation.
        value: the name under which the module logs it.
    """

    def __init__(self, run: Run, value: str) -> None:
        self._steps = Validations(run, value, "the module", "give it a validation_step and data")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps.run.keep_at_end(module=pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        every, most, loop = trainer.check_val_every_n_epoch, trainer.max_epochs, trainer.fit_loop
        known = every and most > 0 and trainer.max_steps == -1 and trainer.val_check_interval == 1.0
        self._steps.begin(most // every or None if known else None)
        if self._steps.run.checkpoint is not None:
            # It is between epochs: Lightning takes one for half done, and has drawn its order.
            loop._restarting = loop.epoch_loop.restarting = False
            iter(loop._data_fetcher)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.report(trainer.callback_metrics)
        if not trainer.is_last_batch:
            self._steps.finish()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._steps.reported:  # only by now have all schedulers been stepped
            trainer.save_checkpoint(path := self._steps.next_path(".ckpt"))
            self._steps.finish(path)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: Any) -> None:
        if isinstance(exception, KeyboardInterrupt):
            raise exception  # Lightning would make it an exit of this process, with code 1
