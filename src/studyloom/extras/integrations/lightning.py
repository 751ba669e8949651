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
        run: the run of the trial, which resumes after its last epoch that ended with a validation.
        value: the name under which the module logs it.
    """

    def __init__(self, run: Run, value: str) -> None:
        self._validations = Validations(
            run,
            monitored=value,
            trainer="the module",
            advice="give it a validation_step and data",
        )

    def on_fit_start(self, trainer: object, pl_module: Any) -> None:
        self._validations.run.keep_at_end(module=pl_module)

    def on_train_start(self, trainer: Any, pl_module: object) -> None:
        """Begins to count validations; corrects how Lightning resumes from a checkpoint.

        The checkpoint was saved between two epochs. Lightning takes it for one within an epoch: it
        would not begin the next epoch as usual, with a new order of the examples. So this method
        sets Lightning's attributes back to those of a training that does not resume.
        """
        self._validations.begin(_count_validations(trainer))
        if self._validations.run.checkpoint is not None:
            loop = trainer.fit_loop
            loop._restarting = False
            loop.epoch_loop.restarting = False
            iter(loop._data_fetcher)

    def on_validation_end(self, trainer: Any, pl_module: object) -> None:
        self._validations.report(trainer.callback_metrics)
        if not trainer.is_last_batch:
            self._validations.finish()

    def on_train_epoch_start(self, trainer: Any, pl_module: object) -> None:
        """Saves a checkpoint if the epoch before ended with a validation.

        It is not saved right after the validation: only now have all schedulers been stepped.
        """
        if self._validations.has_report:
            path = self._validations.next_path(".ckpt")
            trainer.save_checkpoint(path)
            self._validations.finish(path)

    def on_train_end(self, trainer: object, pl_module: object) -> None:
        self._validations.end()

    def on_exception(self, trainer: object, pl_module: object, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            raise exception  # Lightning would end this process with the exit code 1


def _count_validations(trainer: Any) -> int | None:
    """Returns how many validations a training has; None if that is not known.

    It is known if the trainer validates after whole epochs, and ends after a number of epochs.
    """
    interval = trainer.check_val_every_n_epoch  # in epochs; None if it counts batches
    if not interval or trainer.val_check_interval != 1.0:  # validates within epochs too
        return None
    if trainer.max_epochs <= 0 or trainer.max_steps != -1:  # ends by time or steps
        return None
    count = trainer.max_epochs // interval  # 0 if the training is shorter than the interval
    return count or None
