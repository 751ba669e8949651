"""A GAN with two optimizers, as its tutorials write it. Lines for studyloom end in `# +`."""

import torch
from torch import nn


def make_net(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.LeakyReLU(0.2), nn.Linear(16, outputs))


def train(config, run):  # +
    generator, critic = make_net(2, 1), make_net(1, 1)
    of_generator = torch.optim.Adam(generator.parameters(), lr=config.params.lr)  # +
    of_critic = torch.optim.Adam(critic.parameters(), lr=config.params.lr)  # +
    run.keep(generator=generator, critic=critic)  # +
    run.keep(of_generator=of_generator, of_critic=of_critic)  # +
    points = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) / 2 + 2
    judge = nn.BCEWithLogitsLoss()
    for _ in run.epochs(config.params.epochs):  # +
        for real in points[torch.randperm(len(points))].split(16):
            fake = generator(torch.randn(len(real), 2))
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            of_critic.zero_grad()
            (judge(critic(real), ones) + judge(critic(fake.detach()), zeros)).backward()
            of_critic.step()
            of_generator.zero_grad()
            judge(critic(fake), ones).backward()
            of_generator.step()
        with torch.no_grad():
            made = generator(torch.randn(256, 2))
        run.report(loss=abs(made.mean() - points.mean()), spread=made.std())  # +
    return run.value  # +
