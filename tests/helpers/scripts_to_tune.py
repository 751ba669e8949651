"""Twelve scripts, each of another kind, with the command line that searches its arguments."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "extras" / "tune" / "scripts"


@dataclass(frozen=True)
class Line:
    """A command line for a script.

    Args:
        words: the program and its arguments.
        metric: the name of the value that the script prints.
        run: the command that the study runs.
        baseline: the default of each hyperparameter, which the script itself has.
        packages: those that the script needs.
    """

    words: str
    metric: str
    run: str
    baseline: dict[str, object]
    packages: tuple[str, ...] = ()
    direction: str = "minimize"
    flags: dict[str, list[str]] = field(default_factory=dict)


LINES = {
    "typed": Line(
        "typed.py --lr 1e-4:1e-1:log --width 16:256 --epochs 4",
        "val_acc",
        "python typed.py --seed {seed} --lr {lr} --width {width} --epochs 4",
        {"lr": 0.001, "width": 64},
        direction="maximize",
    ),
    "chosen": Line(
        "chosen.py --activation relu,gelu -wd 0.0:0.1:0.005",
        "val_loss",
        "python chosen.py --activation {activation} -wd {wd}",
        {"activation": "gelu", "wd": 0.01},
    ),
    "switched": Line(
        "switched.py --nesterov true,false --momentum=0.0:0.99",
        "val_loss",
        "python switched.py {nesterov} --momentum={momentum}",
        {"nesterov": False, "momentum": 0.9},
        flags={"nesterov": ["--nesterov"]},
    ),
    "listed": Line(
        "listed.py --betas 0.9 0.999 --milestones 10 20 --gamma 0.01:0.5",
        "score",
        "python listed.py --betas 0.9 0.999 --milestones 10 20 --gamma {gamma}",
        {"gamma": 0.1},
    ),
    "grouped": Line(
        "grouped.py fit --lr 0.01:0.1:log --batch-size 16,32,64",
        "loss",
        "python grouped.py --seed {seed} fit --lr {lr} --batch-size {batch_size}",
        {"lr": 0.05, "batch_size": 32},
    ),
    "optional": Line(
        "optional.py --augment true,false --depth 2:8",
        "eval_accuracy",
        "python optional.py --random-seed {seed} {augment} --depth {depth}",
        {"augment": True, "depth": 4},
        direction="maximize",
        flags={"augment": ["--augment", "--no-augment"]},
    ),
    "clicked": Line(
        "clicked.py --learning-rate=0.001:0.1:log --amp true,false",
        "loss",
        "python clicked.py --seed {seed} --learning-rate={learning_rate} {amp}",
        {"learning_rate": 0.02, "amp": False},
        packages=("click",),
        flags={"amp": ["--amp", "--no-amp"]},
    ),
    "typed_app": Line(
        "typed_app.py --lr 1e-4:1e-1:log --hidden-size 8:64 --drop 0.0:0.5 --bias true,false",
        "val_accuracy",
        "python typed_app.py --seed {seed} --lr {lr} --hidden-size {hidden_size} --drop {drop} "
        "{bias}",
        {"lr": 0.003, "hidden_size": 32, "drop": 0.1, "bias": True},
        packages=("typer",),
        direction="maximize",
        flags={"bias": ["--bias", "--no-bias"]},
    ),
    "configured": Line(
        "configured.py --learning_rate=1e-4:1e-2:log --n_layer=2:12 --compile_model=False",
        "val loss",
        "python configured.py --seed={seed} --learning_rate={learning_rate} --n_layer={n_layer} "
        "--compile_model=False",
        {"learning_rate": 0.0006, "n_layer": 6},
    ),
    "hydrated": Line(
        "hydrated.py optimizer.lr=1e-4:1e-1:log model.width=16,64,128",
        "val/loss",
        "python hydrated.py seed={seed} optimizer.lr={optimizer.lr} model.width={model.width}",
        {"optimizer.lr": 0.001, "model.width": 64},
    ),
    "constant": Line("constant.py --lr 0.001:0.1:log", "val_acc", "", {}),
    "distributed": Line(
        "torchrun --standalone --nnodes=1:1 --nproc_per_node=2 distributed.py --lr 0.001:0.1:log",
        "val_loss",
        "torchrun --standalone --nnodes=1:1 --nproc_per_node=2 distributed.py --seed {seed} "
        "--lr {lr}",
        {"lr": 0.01},
    ),
}

# The sweep files below `sweeps/` that run all their trials. Of the others, `target.yaml` ends its
# search early, `logged.yaml` needs W&B, and two have keys without a counterpart.
CONVERTED_SWEEPS = (
    *("grid", "random", "bayes", "quantized", "logarithms", "inverse", "nested", "hyperband"),
    *("hydra", "json"),
)


def copy_scripts(folder: Path) -> Path:
    """Copies the scripts into a new folder, and returns it."""
    shutil.copytree(SCRIPTS, folder)
    return folder
