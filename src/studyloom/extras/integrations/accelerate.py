"""A custom loop with an Accelerator, whose state is saved after each epoch.

The states are in `run.dir`. `run.checkpoint` verifies by their digest that this study has written
them; accelerate reads only tensors and plain values.
"""

from collections.abc import Iterator
from typing import Any

from studyloom.installation import pip_install
from studyloom.objectives.loop_run import Run

try:
    from accelerate import Accelerator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; {pip_install('accelerate')}") from None


def epochs(run: Run, accelerator: Accelerator, count: int, **parts: Any) -> Iterator[int]:
    """Yields the numbers of the epochs from 1 on; after a checkpoint those that are left.

        model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
        for epoch in epochs(run, accelerator, 10, model=model):
            ...
            run.report(accuracy=accuracy)
        return run.value

    The accelerator saves and restores all that it has prepared, and the random state.

    Args:
        run: the run of the trial.
        accelerator: the one that has prepared all that is trained.
        count: how many epochs there are in all.
        parts: the models whose states go into winner.pt, by names that you choose.

    Raises:
        ValueError: the count is not a positive integer, or beyond what the pruner knows.
    """
    models = {name: accelerator.unwrap_model(part) for name, part in parts.items()}
    run.keep_at_end(**models)
    if run.checkpoint is not None:
        accelerator.load_state(str(run.checkpoint))
    for epoch in run.epochs(count):
        yield epoch
        if epoch < count:  # after the last epoch the trial ends, and needs no checkpoint
            # Two folders take turns: the last state must exist until the next one is complete.
            folder = run.dir / f"epoch-{epoch % 2}"
            accelerator.save_state(str(folder))
            run.keep_files(folder)
