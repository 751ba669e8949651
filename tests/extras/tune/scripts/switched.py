"""argparse with `store_true`, and a table with a header."""

import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--nesterov", action="store_true")
parser.add_argument("--momentum", type=float, default=0.9)
args = parser.parse_args()

print("epoch  train_loss  val_loss")
for epoch in range(1, 4):
    loss = (0.5 if args.nesterov else 1.0) + args.momentum / epoch
    print(f"{epoch:5d}  {loss / 2:10.5f}  {loss:8.5f}")
