"""A training with accelerate as its tutorials write it. Lines of studyloom's end in `# +`."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from waiting import wait

from studyloom.extras.integrations.accelerate import epochs  # +


def points(part):
    drawn = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    drawn = drawn[{"train": slice(48), "valid": slice(48, 72), "test": slice(72, 96)}[part]]
    return TensorDataset(drawn, (drawn.sum(1) > 0).long())


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def evaluate(model, batches):
    model.eval()
    with torch.no_grad():
        return sum(nn.functional.cross_entropy(model(x), y) for x, y in batches)


def train(config, run):
    accelerator = Accelerator(cpu=True)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.params.lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    batches = DataLoader(points("train"), 8, shuffle=True)
    held_out = DataLoader(points("valid"), 24)
    model, optimizer, schedule, batches, held_out = accelerator.prepare(
        model, optimizer, schedule, batches, held_out
    )
    for epoch in epochs(run, accelerator, config.params.epochs, model=model):  # +
        model.train()
        for x, y in batches:
            wait(epoch - 1)
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
        schedule.step()
        run.report(loss=evaluate(model, held_out))  # +
    return run.value  # +


def test(config, run, part):
    model = build()
    run.keep(model=model)
    return {"loss": evaluate(model, DataLoader(points("test"), 24))}
