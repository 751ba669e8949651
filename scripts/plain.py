"""What bench.py compares with: the loops of the tutorials, as a careful user writes them.

    python scripts/plain.py example ROOT SEED [TRIALS [STORAGE]]     # 100 MLPs on Fashion-MNIST
    python scripts/plain.py tutorial ROOT SEED                       # 784-128-10 on MNIST

The example is Optuna's own, with its pruner. Of studyloom only the division of the training images
is used, so that both ways train and validate on the same ones. ROOT is a folder of torchvision.
"""

import itertools
import sys

import optuna
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from studyloom.data.folds import make_folds
from studyloom.seeds import derive

EPOCHS = 10


def loaders(
    dataset, validation: int, seed: int, batch: int, workers: int = 0
) -> tuple[DataLoader, DataLoader]:
    """Divides a data set as studyloom does; the loaders of the training and the validation part."""
    train, valid = make_folds(dataset.targets, 1, validation, derive(seed))[0]
    options = {"batch_size": batch, "num_workers": workers}
    return (
        DataLoader(Subset(dataset, train.tolist()), shuffle=True, **options),
        DataLoader(Subset(dataset, valid.tolist()), **options),
    )


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    correct = count = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += (model(images).argmax(dim=1) == labels).sum().item()
            count += len(labels)
    return correct / count


def network(trial: optuna.Trial) -> nn.Module:
    """The network of Optuna's example: one to three layers with dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = 28 * 28
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        units = trial.suggest_int(f"n_units_l{i}", 4, 128)
        dropout = trial.suggest_float(f"dropout_l{i}", 0.2, 0.5)
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 10))


def example(root: str, seed: int, trials: int = 100, storage: str | None = None) -> None:
    """Trains for ten epochs of 30 batches of 128, and validates each on 1 280 held-out images."""
    dataset = datasets.FashionMNIST(root, transform=transforms.ToTensor())
    train, valid = loaders(dataset, 1280, seed, 128)
    torch.manual_seed(seed)

    def objective(trial: optuna.Trial) -> float:
        model = network(trial)
        name = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
        rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=rate)
        for epoch in range(EPOCHS):
            model.train()
            for images, labels in itertools.islice(train, 30):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
            value = accuracy(model, valid)
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=None if storage else seed)
    where = {"study_name": "plain", "storage": storage, "load_if_exists": True}
    study = optuna.create_study(**where, direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials)
    print(study.best_value)


def tutorial(root: str, seed: int) -> None:
    """Trains on MNIST less 5 000 held-out images, in batches of 100 that two processes load."""
    dataset = datasets.MNIST(root, transform=transforms.ToTensor())
    train, valid = loaders(dataset, 5000, seed, 100, workers=2)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        value = accuracy(model, valid)
    print(value)


if __name__ == "__main__":
    what, root, seed, *rest = sys.argv[1:]
    if what == "example":
        trials, storage, *_ = *rest, *("100", "")[len(rest) :]
        example(root, int(seed), int(trials), storage or None)
    else:
        tutorial(root, int(seed))
