"""A loop as the tutorials write it, with a schedule. Lines for studyloom end in `# +`."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


def make_parts():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(96, 4, generator=generator)
    return random_split(TensorDataset(points, (points.sum(1) > 0).long()), [72, 24], generator)


def train(config, run):  # +
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=config.params.lr, momentum=0.9)  # +
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    run.keep(net=net, optimizer=optimizer, scheduler=scheduler)  # +
    criterion = nn.CrossEntropyLoss()
    training, validation = make_parts()
    for _ in run.epochs(config.params.epochs):  # +
        net.train()
        for points, labels in DataLoader(training, 8, shuffle=True):
            optimizer.zero_grad()
            criterion(net(points), labels).backward()
            optimizer.step()
        scheduler.step()
        net.eval()
        with torch.no_grad():
            points, labels = next(iter(DataLoader(validation, len(validation))))
            outputs = net(points)
        accuracy = (outputs.argmax(1) == labels).float().mean()
        run.report(loss=criterion(outputs, labels), accuracy=accuracy)  # +
    return run.value  # +
