"""Snapshots, trials and texts for the tests of what a terminal shows."""

import io

import optuna
from optuna.trial import TrialState, create_trial
from rich.console import Console

from studyloom.views.snapshot import Snapshot

LONG = (
    "a-host-name-that-is-as-long-as-those-of-a-cluster-in-which-"
    "somebody-named-every-single-thing.example.org"
)
MARKUP = ["[red]x[/red]", "[/]", "a[bold]b", ":bug:", "[link=http://x]y[/link]"]


def shown(*renderables, width: int = 80, terminal: bool = False) -> str:
    """What a console of this width prints."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


def joined(text: str) -> str:
    """The text of a table without white space: cells may be folded."""
    return "".join(text.split())


def trial_of(value=None, state=TrialState.COMPLETE, params=None, **attrs):
    params = params or {}
    distributions = {
        name: optuna.distributions.CategoricalDistribution([choice])
        for name, choice in params.items()
    }
    return create_trial(
        state=state, value=value, params=params, distributions=distributions, user_attrs=attrs
    )


def snapshot_of(name="toy", workers=(), best=None, baseline=None, free=3, held=0, done=5, **trials):
    return Snapshot(
        name, {"free": free, "held": held, "done": done}, trials, best, baseline, tuple(workers)
    )
