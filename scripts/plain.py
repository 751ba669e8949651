"""The plain way of bench.py: the loops of the tutorials, as a careful user writes them.

    python scripts/plain.py example ROOT SEED [TRIALS [STORAGE]]     # 100 MLPs on Fashion-MNIST
    python scripts/plain.py tutorial ROOT SEED [EPOCHS]              # 784-128-10 on MNIST
    python scripts/plain.py answer - SEED [TRIALS]                   # as studies.mnist

The example is Optuna's own, with its pruner. Of studyloom only data are used and their division,
so that both ways train and validate on the same. ROOT is a folder of torchvision.
"""

import itertools
import sys

import optuna
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets, transforms

from studyloom.data import Embedded
from studyloom.data.split import make_folds
from studyloom.seeds import derive

EPOCHS = 10


def loaders(
    dataset, validation: int, seed: int, batch: int, workers: int = 0
) -> tuple[DataLoader, DataLoader]:
    """Divides a data set as studyloom does; the loaders of the training and the validation set."""
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
    """Trains for ten epochs of 30 batches of 128, and validates each on 1,280 held-out images."""
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


def tutorial(root: str, seed: int, epochs: int = EPOCHS) -> None:
    """Trains on MNIST less 5,000 held-out images, in batches of 100 that two processes load."""
    dataset = datasets.MNIST(root, transform=transforms.ToTensor())
    train, valid = loaders(dataset, 5000, seed, 100, workers=2)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        value = accuracy(model, valid)
    print(value)


def suggest_network(trial: optuna.Trial) -> nn.Module:
    """The networks of `studies.mnist`."""
    if trial.suggest_categorical("model", ["mlp", "cnn"]) == "cnn":
        channels = trial.suggest_categorical("channels", [8, 16, 32])
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, channels), (channels, 2 * channels)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * channels * 7 * 7, 10))
    names = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
    activation = names[trial.suggest_categorical("activation", [*names])]
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    layers, width = [nn.Flatten()], 28 * 28
    for i in range(trial.suggest_int("length", 1, 3)):
        units = trial.suggest_int(f"hidden_{i}", 16, 512, log=True)
        layers += [nn.Linear(width, units), activation(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 10))


def suggest_optimizer(trial: optuna.Trial, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizers of `studies.mnist`."""
    if trial.suggest_categorical("optimizer", ["sgd", "adamw"]) == "sgd":
        rate = trial.suggest_float("sgd_lr", 1e-3, 1.0, log=True)
        momentum = trial.suggest_float("momentum", 0.0, 0.99)
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    rate = trial.suggest_float("adamw_lr", 1e-4, 1e-2, log=True)
    decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def answer(seed: int, trials: int = 40, epochs: int = 6) -> None:
    """Searches as `studies.mnist` does, trains the best once on all images, and tests it."""
    source = Embedded()
    parts = [source.train(), source.test()]
    images, tested = (TensorDataset(part.inputs, part.targets) for part in parts)
    train, valid = make_folds(parts[0].targets, 1, source.validation, derive(seed))[0]
    torch.manual_seed(seed)

    def fit(trial: optuna.Trial, chosen: Dataset, held_out: Dataset, prune: bool) -> float:
        batch = trial.suggest_categorical("batch_size", [32, 64, 128, 256])
        loader = DataLoader(chosen, batch, shuffle=True)
        model = suggest_network(trial)
        optimizer = suggest_optimizer(trial, model)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
        for epoch in range(epochs):
            model.train()
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                rates.step()
            if prune or epoch == epochs - 1:
                value = accuracy(model, DataLoader(held_out, 256))
            if prune:
                trial.report(value, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return value

    def objective(trial: optuna.Trial) -> float:
        return fit(trial, Subset(images, train.tolist()), Subset(images, valid.tolist()), True)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials)
    print(fit(optuna.trial.FixedTrial(study.best_params), images, tested, False))


if __name__ == "__main__":
    what, root, seed, *rest = sys.argv[1:]
    if what == "example":
        trials, storage, *_ = *rest, *("100", "")[len(rest) :]
        example(root, int(seed), int(trials), storage or None)
    elif what == "answer":
        answer(int(seed), *map(int, rest))
    else:
        tutorial(root, int(seed), *map(int, rest))
