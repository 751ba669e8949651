"""Little projects as people have them: a script, and a Hydra application."""

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


def write_project(folder: Path, files: dict[str, str]) -> Path:
    """Writes the files of a project, by their path in it, and returns its folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return folder
