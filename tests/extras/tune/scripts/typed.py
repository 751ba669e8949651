"""argparse with `type=`: the commonest script."""

import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

for epoch in range(1, args.epochs + 1):
    error = abs(args.lr - 0.01) + abs(args.width - 128) / 1000 + args.seed % 7 / 1e6
    print(f"epoch {epoch}: train_loss={2 / epoch:.4f} val_acc={1 - error - 0.1 / epoch:.6f}")
