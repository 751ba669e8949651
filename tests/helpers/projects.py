"""Small projects as people have them: a script, and a Hydra application."""

import textwrap
from pathlib import Path

# In the style of an example's main.py: argparse, a seed, an epoch loop, a checkpoint if there is a
# folder for it. Pure Python, since a command that imports torch takes two seconds.
SCRIPT = '''
    """Fits a line by stochastic gradient descent."""

    import argparse
    import json
    import os
    import random
    import time
    from pathlib import Path


    def train(args, weight):
        for _ in range(50):
            x = random.uniform(-1, 1)
            weight -= args.lr * (weight * x - 3 * x + random.gauss(0, 0.1)) * x
        return weight


    def main():
        parser = argparse.ArgumentParser(description="A line")
        parser.add_argument("--lr", type=float, default=0.1)
        parser.add_argument("--epochs", type=int, default=6)
        parser.add_argument("--seed", type=int, default=1)
        parser.add_argument("--gate", default=None, help="wait for this file in epoch 4")
        args = parser.parse_args()
        random.seed(args.seed)
        weight, first = 0.0, 1
        folder = os.environ.get("STUDYLOOM_CHECKPOINT_DIR")
        checkpoint = Path(folder, "last.json") if folder else None
        if checkpoint and checkpoint.exists():
            first, weight, state = json.loads(checkpoint.read_text())
            random.setstate((state[0], tuple(state[1]), state[2]))
        for epoch in range(first, args.epochs + 1):
            print(f"Train Epoch: {epoch} [0/50]")
            while epoch == 4 and args.gate and not os.path.exists(args.gate):
                time.sleep(0.01)
            weight = train(args, weight)
            print(f"Test set: Average loss: {(weight - 3) ** 2:.12f}, Accuracy: 0/1 (0%)")
            if checkpoint:
                state = [epoch + 1, weight, random.getstate()]
                checkpoint.with_suffix(".new").write_text(json.dumps(state))
                checkpoint.with_suffix(".new").replace(checkpoint)


    if __name__ == "__main__":
        main()
'''
# The sections of a study of it.
COMMAND = """
objective:
  _target_: studyloom.extras.integrations.Command
  run: python main.py --lr {lr} --seed {seed}
  value: 'Average loss: (?P<value>\\S+),'
  step: 'Train Epoch: (?P<step>\\d+)'
  metric: loss
  direction: minimize
params: {lr: 0.1}
space: {params: {lr: {float: [0.01, 1.0], log: true}}}
"""
VALUE, STEP = r"Average loss: (?P<value>\S+),", r"Train Epoch: (?P<step>\d+)"

# A Hydra application with a config group, an interpolation, and a decorated entry point.
APPLICATION = {
    "configs/train.yaml": """
        defaults: [model: small, _self_]
        optimizer: {name: sgd, lr: 0.1}
        decoder: {width: "${model.width}"}
        epochs: 5
        output: ${hydra:runtime.output_dir}
        started: ${now:%Y-%m-%d_%H-%M-%S-%f}
    """,
    "configs/model/small.yaml": "{width: 8, activation: relu}",
    "configs/optimizer/sgd.yaml": "{name: sgd}",
    "src/__init__.py": "",
    "src/train.py": '''
        """Trains, and returns its metrics."""

        import argparse
        from pathlib import Path

        import hydra
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.global_hydra import GlobalHydra


        def train(cfg):
            assert cfg.decoder.width == cfg.model.width
            assert not GlobalHydra.instance().is_initialized()
            argparse.ArgumentParser().parse_args()
            (Path(HydraConfig.get().runtime.output_dir) / "result.txt").write_text(cfg.output)
            loss = (cfg.optimizer.lr - 0.5) ** 2 + abs(cfg.decoder.width - 16) / 16
            return {"val/loss": loss, "val/acc": 1 - loss}, {"cfg": cfg}


        @hydra.main(version_base="1.3", config_path="../configs", config_name="train")
        def main(cfg):
            metrics, _ = train(cfg)
            return metrics["val/acc"]


        if __name__ == "__main__":
            main()
    ''',
}

# Trainings that save their state by a relative path, each as in the example that it names. Their
# loss is (1 - lr) to the power of the epoch, unless they load the state of another training. In
# epoch 3 they wait for the file of their last argument.
BEGIN = """
    import json
    import os
    import sys
    import time

    assert open("data/input.txt").read() == "text"
    rate, gate = float(sys.argv[1]), sys.argv[2]


    def wait(epoch):
        while epoch == 3 and not os.path.exists(gate):
            time.sleep(0.01)


    def save(state, path):
        with open(path + ".new", "w") as file:
            json.dump(state, file)
        os.replace(path + ".new", path)


    def load(path):
        with open(path) as file:
            return json.load(file)

"""
SAVING = {
    # pytorch/examples, imagenet/main.py --resume checkpoint.pth.tar
    "checkpoint.pth.tar": """
    state = load("checkpoint.pth.tar") if os.path.isfile("checkpoint.pth.tar") else [0, 1.0]
    for epoch in range(state[0] + 1, 5):
        wait(epoch)
        state = [epoch, state[1] * (1 - rate)]
        print(f"epoch {epoch} loss {state[1]:.12f}")
        save(state, "checkpoint.pth.tar")
    """,
    # karpathy/nanoGPT, train.py with init_from=resume if it can
    "out/ckpt.pt": """
    os.makedirs("out", exist_ok=True)
    state = load("out/ckpt.pt") if os.path.exists("out/ckpt.pt") else {"epoch": 0, "loss": 1.0}
    for epoch in range(state["epoch"] + 1, 5):
        wait(epoch)
        state = {"epoch": epoch, "loss": state["loss"] * (1 - rate)}
        print(f"epoch {epoch} loss {state['loss']:.12f}")
        save(state, os.path.join("out", "ckpt.pt"))
    """,
    # pytorch/examples, word_language_model/main.py, which tests the best model at the end
    "model.pt": """
    loss = best = 1.0
    for epoch in range(1, 4):
        wait(epoch)
        loss *= 1 - rate
        if loss < best:
            save(loss, "model.pt")
            best = loss
        print(f"epoch {epoch} loss {loss:.12f}")
    print(f"epoch 4 loss {load('model.pt') * (1 - rate):.12f}")
    """,
    # pytorch/examples, distributed/ddp-tutorial-series/multigpu_torchrun.py
    "snapshot.pt": """
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    is_first = distributed.get_rank() == 0
    state = torch.load("snapshot.pt") if os.path.exists("snapshot.pt") else [0, 1.0]
    for epoch in range(state[0] + 1, 5):
        wait(epoch)
        loss = torch.tensor(state[1] * (1 - rate) / 2, dtype=torch.double)
        distributed.all_reduce(loss)
        state = [epoch, loss.item()]
        if is_first:
            print(f"epoch {epoch} loss {state[1]:.12f}")
            torch.save(state, "new.pt")
            os.replace("new.pt", "snapshot.pt")
        distributed.barrier()
    distributed.destroy_process_group()
    """,
}


def write_project(folder: Path, files: dict[str, str]) -> Path:
    """Writes the files of a project, by their path in it, and returns its folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return folder
