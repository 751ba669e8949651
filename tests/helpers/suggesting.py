"""Objectives of Optuna's as their users write them: what they suggest depends on what came before.

`STUDYLOOM_TEST_GATE` names a file for which `objective` waits in its second epoch.
"""

import os
import time

import optuna
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 4


def define_model(trial):
    layers, width = [], 2
    for number in range(trial.suggest_int("layers", 1, 3)):
        units = trial.suggest_int(f"units.{number}", 2, 16, log=True)
        layers += [nn.Linear(width, units), nn.ReLU()]
        if trial.suggest_categorical(f"drops.{number}", [True, False]):
            layers.append(nn.Dropout(trial.suggest_float(f"dropout.{number}", 0.1, 0.5)))
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 2))


def objective(trial):
    inputs = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
    targets = (inputs.prod(1) > 0).long()
    model = define_model(trial)
    optimizer = getattr(torch.optim, trial.suggest_categorical("optimizer", ["SGD", "Adam"]))
    optimizer = optimizer(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1.0, log=True))
    for epoch in range(EPOCHS):
        gate = os.environ.get("STUDYLOOM_TEST_GATE")
        while gate and epoch == 1 and not os.path.exists(gate):
            time.sleep(0.01)
        model.train()
        for batch, wanted in DataLoader(TensorDataset(inputs[:64], targets[:64]), 16, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
        right = model.eval()(inputs[64:]).argmax(1) == targets[64:]
        accuracy = right.float().mean().item()
        trial.report(accuracy, epoch)
        trial.set_user_attr("last", epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy
