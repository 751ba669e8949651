"""A loop of one's own that several ranks can train; with 200 examples of its own."""

import os
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def train(config, run):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 8, generator=generator)
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    net = nn.Linear(8, 2)
    wrapped = run.wrap(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=config.params.lr)
    run.keep(net=net, optimizer=optimizer)
    for epoch in run.epochs(8):
        gate = os.environ.get("STUDYLOOM_TEST_GATE")
        while gate and epoch == 2 and not os.path.exists(gate):
            time.sleep(0.01)
        sampler = DistributedSampler(data, run.world_size, run.rank, seed=run.seed)
        sampler.set_epoch(epoch)
        for batch, targets in DataLoader(data, 20 // run.world_size, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(batch), targets).backward()
            optimizer.step()
        while os.environ.get("STUDYLOOM_TEST_HANG") == f"{run.rank} {run.trial} {epoch}":
            time.sleep(0.1)  # the other ranks wait for this one
        if os.environ.get("STUDYLOOM_TEST_FAIL") == f"{run.rank} {run.trial} {epoch}":
            raise ArithmeticError(f"rank {run.rank} has failed")
        if run.rank == 0:  # the others decide nothing
            with torch.no_grad():
                loss = nn.functional.cross_entropy(net(inputs), data.tensors[1])
            run.report(loss=loss)
    return run.value if run.rank == 0 else None
