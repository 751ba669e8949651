"""Reads its settings in a JSON file, and once more as JSON."""

import argparse
import json
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
parser.add_argument("--also", type=json.loads)
args = parser.parse_args()
settings = json.loads(args.config.read_text())
assert settings == args.also

loss = settings["lr"] + sum(settings["hidden"]) / 1000 + (settings["dropout"] or 0.5)
loss += settings["loader"]["workers"] / 100 + int(settings["loader"]["shuffle"] is True) / 50
for epoch in range(1, 4):
    print(f"epoch {epoch} loss={loss + 1 / epoch:.6f}")
