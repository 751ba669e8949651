"""argparse with `choices`, a constant as a default, and lines of JSON."""

import argparse
import json

DECAY = 10 * 1e-3
parser = argparse.ArgumentParser()
parser.add_argument("--activation", choices=["relu", "gelu", "tanh"], default="gelu")
parser.add_argument("-wd", "--weight-decay", type=float, default=DECAY)
args = parser.parse_args()

for step in range(0, 300, 100):
    loss = {"relu": 0.1, "gelu": 0.2, "tanh": 0.3}[args.activation] + args.weight_decay
    print(json.dumps({"step": step, "val": {"loss": 9}, "val_loss": loss + 1 / (step + 1)}))
