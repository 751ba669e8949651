"""What comes after a search, judged on the same searches: which answer is named, and when it ends.

The searches are those of today's default on HPOBench, whose tables have five seeds of each
configuration. A trial has had one of them. Up to three more serve to judge candidates again, and
the last, which nothing has seen, is what an answer is worth.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from .methods import Run
from .statistics import Floats, interval

TRAININGS, FRESH = 40, 3
USED = 1 + FRESH  # seeds that an answer may have seen
TOP, FIRST, FULL = 7, 10, 34  # points of earlier studies, trials with them, and without
REGRET = 0.005  # study.regret, in units of the accuracy


def luckiest(run: Run, trials: int = TRAININGS) -> int:
    """Names the configuration of the best trial."""
    return max(run.tape.configurations[:trials], key=lambda one: run.seen(one, 1))


def judged_again(run: Run, top: int = 3) -> int:
    """Names the best of the top trials by fresh seeds, at as many trainings: fewer trials."""
    candidates = ranked(run, TRAININGS - top * FRESH)[:top]
    return max(candidates, key=lambda one: float(fresh(run, one).mean()))


def ranked(run: Run, trials: int) -> list[int]:
    """Returns the configurations of the first trials, each once, the best first."""
    tried = dict.fromkeys(run.tape.configurations[:trials])
    return sorted(tried, key=lambda one: -run.seen(one, 1))


def fresh(run: Run, configuration: int) -> Floats:
    """Returns the values of a configuration on the seeds for candidates, (FRESH,)."""
    seeds = run.order[configuration, 1:USED]
    return run.task.values[configuration, seeds, -1].astype(np.float64)


def raced(run: Run) -> int:
    """Names the winner of a race, at as many trainings; see `studyloom.search.race`."""
    from studyloom.search.race import count_entrants, run_race

    budget = 3 * FRESH + 3
    candidates = ranked(run, TRAININGS - budget)[: count_entrants(budget, FRESH)]
    entrants = range(len(candidates))
    results: dict[tuple[int, int], float | None] = {
        (entrant, seed): float(value)
        for entrant, one in enumerate(candidates)
        for seed, value in enumerate(fresh(run, one))
    }
    return candidates[run_race(entrants, results, budget).running[0]]


ANSWERS: dict[str, Callable[[Run], int]] = {
    f"luckiest of {TRAININGS}": luckiest,
    f"top 3 of {TRAININGS - 3 * FRESH} on {FRESH} seeds": judged_again,
    f"race of {TRAININGS - 3 * FRESH - 3} and {3 * FRESH + 3} trainings": raced,
}


def show_answers(runs: Sequence[Sequence[Run]]) -> None:
    """Prints what each way to an answer is worth, and what an early end saves and costs.

    Args:
        runs: of the default: for each task, for each seed.
    """
    if min(len(run.tape.configurations) for task in runs for run in task) < TRAININGS:
        return
    print(f"\nanswers after {TRAININGS} trainings of HPOBench, by a seed that nothing has seen")
    print(f"{'':36}  regret   less than the luckiest by, 95 %")
    base = worth(runs, luckiest)
    for name, answer in ANSWERS.items():
        if answer is raced and not is_there("race"):
            print("not there yet: winner.race=true")
            continue
        found = worth(runs, answer)
        low, high = interval(base - found)
        gain = (base - found).mean()
        share = 100 * gain / base.mean()
        print(
            f"{name:36}{found.mean():8.4f}   {gain:+.4f} [{low:+.4f}, {high:+.4f}], {share:.0f} %"
        )
    show_early_end(runs)
    show_memory(runs)


def worth(runs: Sequence[Sequence[Run]], answer: Callable[[Run], int]) -> Floats:
    """Returns the regret of a way to an answer, (tasks, seeds): the mean over the seed left out."""

    def turned(run: Run, by: int) -> Run:
        others = np.roll(run.order[:, 1:], by, axis=1)
        return replace(run, order=np.concatenate([run.order[:, :1], others], axis=1))

    def mean_regret(run: Run) -> float:
        turns = [turned(run, by) for by in range(USED)]
        return fmean(each.regret(answer(each), USED) for each in turns)

    return np.array([[mean_regret(run) for run in task] for task in runs])


def is_there(module: str) -> bool:
    """Whether a module of `studyloom.search` is there."""
    return importlib.util.find_spec(f"studyloom.search.{module}") is not None


def show_early_end(runs: Sequence[Sequence[Run]]) -> None:
    """Prints what `study.stop=regret` saves and costs, if it is there."""
    if not is_there("regret"):
        print("not there yet: study.stop=regret")
        return
    from studyloom.search.regret import gains

    saved, cost = [], []
    for task in runs:
        for run in task:
            configurations = run.tape.configurations[:TRAININGS]
            values = [run.seen(one, 1) for one in configurations]
            asked = enumerate(gains(values, TRAININGS), 1)
            small = (count for count, gain in asked if gain is not None and gain < REGRET)
            end = next(small, TRAININGS)
            saved.append(1 - end / TRAININGS)
            scale = run.task.scale  # regrets as accuracies, as study.regret is
            cost.append(scale * (run.regret(luckiest(run, end)) - run.regret(luckiest(run))))
    print(
        f"study.stop=regret study.regret={REGRET}: {100 * np.mean(saved):.0f} % of {TRAININGS} "
        f"trials saved, regret more by {np.median(cost):.4f} in the median, {np.mean(cost):.4f} in "
        f"the mean, {np.quantile(cost, 0.9):.4f} in one of ten"
    )


def show_memory(runs: Sequence[Sequence[Run]]) -> None:
    """Prints what a portfolio of the other tasks' studies gives in the first trials of each.

    The search goes on with the trials that it would have had in these places, which are drawn at
    random: TPE looks at no trial before the tenth.
    """
    if not is_there("portfolio"):
        print("not there yet: study.from=auto")
        return
    regrets = np.array(
        [
            [first_regret(run, portfolio(runs, task, seed)) for seed, run in enumerate(own)]
            for task, own in enumerate(runs)
        ]
    )
    plain = np.array([[run.regret(luckiest(run, FULL)) for run in own] for own in runs])
    short = np.array([[run.regret(luckiest(run, FIRST)) for run in own] for own in runs])
    low, high = interval(plain - regrets)
    reached = int((regrets.mean(1) <= plain.mean(1)).sum())
    print(
        f"study.from=auto study.top={TOP}: regret {regrets.mean():.4f} after {FIRST} trials, "
        f"without {short.mean():.4f}, and {plain.mean():.4f} after {FULL}: less than that by "
        f"{(plain - regrets).mean():+.4f} [{low:+.4f}, {high:+.4f}], reached on {reached} of "
        f"{len(runs)} tasks"
    )


def portfolio(runs: Sequence[Sequence[Run]], task: int, seed: int) -> list[int]:
    """Returns the configurations that the studies of the other tasks propose for a task."""
    from studyloom.search.portfolio import EarlierStudy, choose_points, rank_scores

    others = [own[seed] for number, own in enumerate(runs) if number != task]
    tried = [ranked(run, TRAININGS) for run in others]
    space = others[0].task.space or {}
    sizes = [node["int"][1] + 1 for node in space.values()]
    studies = [
        EarlierStudy(
            np.stack(np.unravel_index(configurations, sizes), 1) / (np.array(sizes) - 1.0),
            rank_scores(len(configurations), 0),
            np.ones(len(configurations), dtype=bool),
        )
        for configurations in tried
    ]
    chosen = choose_points(studies, np.zeros(len(sizes), dtype=bool), TOP)
    return [tried[study][trial] for study, trial in chosen]


def first_regret(run: Run, proposed: Sequence[int]) -> float:
    """Returns the regret of a search that begins with some configurations, after FIRST trials."""
    trials = [*proposed, *run.tape.configurations[len(proposed) : FIRST]]
    return run.regret(max(trials, key=lambda one: run.seen(one, 1)))
