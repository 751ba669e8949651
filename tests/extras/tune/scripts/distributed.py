"""Two processes of torchrun; each prints its own value, and then the mean of both."""

import argparse
import os

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
dist.init_process_group("gloo")
for epoch in range(1, 4):
    loss = torch.tensor(args.lr + (dist.get_rank() + 1) / epoch)
    dist.all_reduce(loss)
    if dist.get_rank() == 0:
        print(f"epoch {epoch} of rank {os.environ['RANK']}: val_loss = {loss.item() / 2:.5f}")
dist.destroy_process_group()
