"""Reads a mapping in one argument, as W&B passes nested parameters."""

import argparse
import ast

parser = argparse.ArgumentParser()
parser.add_argument("--optimizer", type=ast.literal_eval)
parser.add_argument("--depth", type=int, default=4)
args = parser.parse_args()

loss = args.optimizer["lr"] + args.depth / 100 + args.optimizer["schedule"]["warmup"] / 1000
loss += {"adam": 0.1, "sgd": 0.2}[args.optimizer["name"]] + int(args.optimizer["nesterov"]) / 50
for epoch in range(1, 4):
    print(f"epoch {epoch} loss={loss + 1 / epoch:.6f}")
