"""Studies that have ended before another begins; nothing is trained, and values are drawn."""

import math

import optuna
import yaml
from optuna.trial import create_trial
from toy_worker import RANDOM, fresh
from toys import ask, fill

from studyloom.storage.attributes import SLOT


def finished(url, definition, trials=4, name="earlier", done=None):
    """A study of a question, with all of its trials done unless `done` says fewer."""
    stored = fresh(url, definition, trials, name)
    seed, done = definition.config.study.seed, trials if done is None else done
    for number in range(done):
        plain = optuna.create_study(sampler=optuna.samplers.RandomSampler(100 * seed + number))
        configuration = definition.space.suggest(plain.ask())
        trial = create_trial(
            value=0.5 + 0.1 * math.sin(7 * seed + number),
            params=configuration.params,
            distributions=configuration.distributions,
            user_attrs={SLOT: number},
        )
        fill(stored, trial)
        stored.ledger.finish(stored.ledger.claim("toy", trials, 60.0))
    return stored


def seeded(seed):
    return ask(*RANDOM, f"study.seed={seed}")


def run_of(folder, name="earlier", **storage):
    """The files by which Hydra makes a folder a run directory."""
    (folder / ".hydra").mkdir(parents=True)
    config = {"study": {"name": name}, "storage": {"url": "sqlite:///study.db"} | storage}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def finished_run(folder, seed=1, **options):
    """The run directory of such a study of the toy space."""
    run_of(folder)
    finished(f"sqlite:///{folder}/study.db", seeded(seed), **options).close()
    return folder
