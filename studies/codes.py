"""An autoencoder that describes a digit by eight numbers, and a probe that reads it off them.

It is the loop of the study `autoencoder`. The two networks have an optimizer each: the probe learns
to read the codes, and the autoencoder to reproduce the pixels and to be readable.
"""

from studyloom import Run

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

PIXELS, CODE, DIGITS = 28 * 28, 8, 10


class Autoencoder(nn.Module):
    """Maps digits to codes, and back.

    Args:
        width: of the layers between pixels and codes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, CODE)
        )
        self.decoder = nn.Sequential(nn.Linear(CODE, width), nn.ReLU(), nn.Linear(width, PIXELS))


def train(config: DictConfig, run: Run) -> dict[str, float]:
    """Trains autoencoder and probe, and returns both objectives on the validation digits."""
    params, device = config.params, run.device
    net, probe = Autoencoder(params.width).to(device), nn.Linear(CODE, DIGITS).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=params.lr)
    of_probe = torch.optim.SGD(probe.parameters(), lr=params.lr_probe, momentum=0.9)
    loader = DataLoader(run.train, 64, shuffle=True, generator=run.generator)
    run.keep(net=net, probe=probe, optimizer=optimizer, of_probe=of_probe)
    for _ in run.epochs(params.epochs):
        for digits, classes in loader:
            digits, classes = digits.to(device), classes.to(device)
            codes = net.encoder(digits + params.noise * torch.randn_like(digits))
            error = mse_loss(net.decoder(codes), digits.flatten(1))
            optimizer.zero_grad()
            (error + params.share * cross_entropy(probe(codes), classes)).backward()
            optimizer.step()
            of_probe.zero_grad()
            cross_entropy(probe(codes.detach()), classes).backward()
            of_probe.step()
        run.report(**evaluate(net, probe, run.valid))
    return evaluate(net, probe, run.valid)


def test(config: DictConfig, run: Run, dataset: TensorDataset) -> dict[str, float]:
    """Returns the same for the test digits."""
    net = Autoencoder(config.params.width).to(run.device)
    probe = nn.Linear(CODE, DIGITS).to(run.device)
    run.keep(net=net, probe=probe)
    return evaluate(net, probe, dataset)


@torch.no_grad()
def evaluate(net: Autoencoder, probe: nn.Linear, part: TensorDataset) -> dict[str, float]:
    """Returns the accuracy of the probe, and the error of the pixels that come back."""
    digits, classes = (tensor.to(probe.weight.device) for tensor in part.tensors)
    codes = net.encoder(digits)
    return {
        "accuracy": (probe(codes).argmax(1) == classes).float().mean().item(),
        "error": mse_loss(net.decoder(codes), digits.flatten(1)).item(),
    }
