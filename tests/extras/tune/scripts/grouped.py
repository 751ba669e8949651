"""argparse with subparsers that share the arguments of a parent."""

import argparse

common = argparse.ArgumentParser(add_help=False)
common.add_argument("--lr", type=float, default=0.05)
parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=1)
commands = parser.add_subparsers(dest="command", required=True)
fit = commands.add_parser("fit", parents=[common])
fit.add_argument("--batch-size", type=int, default=32)
evaluate = commands.add_parser("evaluate", parents=[common])
evaluate.add_argument("--batch-size", type=int, default=256)
args = parser.parse_args()

print(args)
for epoch in range(1, 4):
    print(f"Epoch [{epoch}/3] step 10 loss {9.5 - args.lr:.5f}")
    print(f"Epoch [{epoch}/3] step 20 loss {args.lr + args.batch_size / 100 / epoch:.5f}")
