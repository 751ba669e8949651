"""A custom training loop with 200 examples."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(config, run):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 8, generator=generator)
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    net = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=config.params.lr)
    run.keep(net=net, optimizer=optimizer)
    for _ in run.epochs(8):
        for batch, targets in DataLoader(data, 20, shuffle=True, generator=run.generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), targets).backward()
            optimizer.step()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(net(inputs), data.tensors[1])
        run.report(loss=loss)
    return run.value
