"""What bench.py compares with: the tutorials' loops, as a careful user writes them. Nothing of studyloom is used but
the division of the training images, so that both ways train and validate on the same.

python scripts/plain.py example ROOT SEED [TRIALS [STORAGE]]     # Optuna's question: 100 MLPs on Fashion-MNIST, pruned
python scripts/plain.py tutorial ROOT SEED                       # 784-128-10 on MNIST, ten epochs
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
    train, valid = make_folds(dataset.targets, 1, validation, derive(seed))[0]
    return (
        DataLoader(
            Subset(dataset, train.tolist()), batch_size=batch, shuffle=True, num_workers=workers
        ),
        DataLoader(Subset(dataset, valid.tolist()), batch_size=batch, num_workers=workers),
    )


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = seen = 0
    with torch.no_grad():
        for images, labels in loader:
            right += (model(images).argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    return right / seen


def network(trial: optuna.Trial) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    width = 28 * 28
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        units = trial.suggest_int(f"n_units_l{i}", 4, 128)
        layers += [
            nn.Linear(width, units),
            nn.ReLU(),
            nn.Dropout(trial.suggest_float(f"dropout_l{i}", 0.2, 0.5)),
        ]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 10))


def example(root: str, seed: int, trials: int = 100, storage: str | None = None) -> None:
    """Ten epochs of 30 batches of 128, each followed by the accuracy on 1 280 images held out."""
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
    study = optuna.create_study(
        study_name="plain",
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        sampler=sampler,
    )
    study.optimize(objective, n_trials=trials)
    print(study.best_value)


def tutorial(root: str, seed: int) -> None:
    """The whole of MNIST but 5 000 images held out, in batches of 100, through two loading processes."""
    train, valid = loaders(
        datasets.MNIST(root, transform=transforms.ToTensor()), 5000, seed, 100, workers=2
    )
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
        example(
            root, int(seed), *(kind(value) for kind, value in zip((int, str), rest, strict=False))
        )
    else:
        tutorial(root, int(seed))
