"""argparse with `nargs`; its values have no name in the output."""

import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--betas", type=float, nargs=2, default=[0.9, 0.999])
parser.add_argument("--milestones", type=int, nargs="+", default=[30, 60])
parser.add_argument("--gamma", type=float, default=0.1)
args = parser.parse_args()

for epoch in range(1, 4):
    print(f"Epoch {epoch} of 3")
    print(f">> {args.gamma * args.betas[0] / epoch + len(args.milestones):.5f} <<")
