"""A script that trains on several devices by torchrun, tuned as a command: here with gloo."""

import psutil
import pytest
from live_processes import until
from optuna.trial import TrialState
from projects import write_project
from runs import Run, kill

from studyloom.processes import is_alive

pytestmark = pytest.mark.chaos

# PyTorch's DistributedDataParallel as its tutorials have it, with a checkpoint for each epoch.
SCRIPT = '''
    """Fits a linear model in several processes."""

    import argparse
    import os
    import time

    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="last.pt")
    parser.add_argument("--gate", help="epoch 3 waits for this file")
    args = parser.parse_args()

    try:
        dist.init_process_group("gloo")
    except RuntimeError as error:  # gloo cannot connect now and then; torchrun starts it again
        raise SystemExit(str(error)) from None
    torch.manual_seed(args.seed)
    inputs = torch.randn(64, 4)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    sampler = DistributedSampler(data, seed=args.seed)
    net = nn.Linear(4, 1)
    wrapped = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9)
    begun = 0
    if os.path.exists(args.checkpoint):
        state = torch.load(args.checkpoint)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        begun = state["epoch"]
    for epoch in range(begun + 1, 5):
        while epoch == 3 and not os.path.exists(args.gate):
            time.sleep(0.01)
        sampler.set_epoch(epoch)
        for batch, targets in DataLoader(data, 8, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.mse_loss(wrapped(batch), targets).backward()
            optimizer.step()
        if dist.get_rank() == 0:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, args.checkpoint + ".new")
            os.replace(args.checkpoint + ".new", args.checkpoint)
            with torch.no_grad():
                loss = nn.functional.mse_loss(net(inputs), data.tensors[1])
            print(f"epoch={epoch} valid_loss={loss:.10f}")
        dist.barrier()
    dist.destroy_process_group()
'''
# The larger learning rate diverges, and its trial is pruned at the first epoch.
STUDY = """
defaults:
  [studyloom, sampler: grid, pruner: none, storage: sqlite, launcher: local, space: none, _self_,
   override hydra/job_logging: none, override hydra/hydra_logging: none]
study: {name: own, trials: 2, baseline: false}
run_dir: run
launcher: {workers: 1}
pruner: {_target_: optuna.pruners.ThresholdPruner, upper: 1000.0}
objective:
  _target_: studyloom.extras.integrations.Command
  value: 'valid_loss=(?P<value>\\S+)'
  step: 'epoch=(?P<step>\\d+)'
  metric: loss
  direction: minimize
params: {lr: 0.05}
space: {params: {lr: {choice: [0.05, 100.0]}}}
"""
# A process of gloo sometimes aborts when it exits ("terminate called without an active exception").
# Then torchrun starts the script again, which finds its last checkpoint and has nothing left to do.
TORCHRUN = "torchrun --standalone --nproc_per_node=2 --max_restarts=3"


@pytest.fixture
def project(tmp_path):
    """Makes a run of the study in its own folder, whose trials wait for the file `gate`."""
    runs = []

    def make(name: str) -> Run:
        folder = write_project(tmp_path / name, {"train.py": SCRIPT, "conf/own.yaml": STUDY})
        command = (
            f"{TORCHRUN} train.py --lr {{lr}} --seed {{seed}} "
            f"--checkpoint {{checkpoint_dir}}/last.pt --gate {tmp_path}/gate"
        )
        url = f"sqlite:///{folder}/run/study.db"
        overrides = (
            f"objective.run='{command}'",
            "study.trial_timeout=300",  # so that the worker has its own process
            "study.lease=5",
            "winner.enabled=false",
        )
        run = Run(folder / "run", url, overrides, name="own", trials=2)
        run.page = "conf/own.yaml"
        run.cwd = folder
        runs.append(run)
        return run

    yield make
    for run in runs:
        kill(run.processes())


def outcomes(run: Run) -> list[tuple]:
    return [
        (trial.params, trial.state, trial.value, trial.intermediate_values)
        for trial in run.stored().trials()
    ]


def training_processes(run: Run) -> list[int]:
    """The processes below torchrun, which train."""
    processes = []
    for pid in run.processes():
        arguments = psutil.Process(pid).cmdline()
        if "train.py" in arguments and not any("torch" in word for word in arguments):
            processes.append(pid)
    return processes


def worker_of(pid: int) -> psutil.Process:
    """The worker of studyloom above a process that trains: the parent of torchrun."""
    torchrun = psutil.Process(pid).parent()
    return torchrun.parent()


def test_a_killed_trial_of_two_processes_resumes_to_an_equal_value(project, tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    undisturbed = project("undisturbed")
    undisturbed.end(undisturbed.start(), 0)
    states = [state for _, state, *_ in outcomes(undisturbed)]
    assert sorted(states) == [TrialState.COMPLETE, TrialState.PRUNED]

    gate.unlink()
    killed = project("killed")
    process = killed.start()
    killed.until_stored(lambda stored: any(2 in t.intermediate_values for t in stored.trials()))
    trained = training_processes(killed)
    assert len(trained) == 2
    worker_of(trained[0]).kill()
    until(lambda: not any(map(is_alive, trained)), 30)
    gate.touch()
    killed.end(process, 0)
    assert outcomes(killed) == outcomes(undisturbed)
    log = "\n".join(path.read_text() for path in killed.folder.glob("logs/trial-*.log"))
    assert log.count("epoch=1 ") == 2, "no trial began again"
