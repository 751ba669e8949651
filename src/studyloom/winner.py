"""The answer of a study: the winner and the baseline on the test part, which is opened once, and the files on it."""

import base64
import io
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from studyloom import config
from studyloom.checkpoint import load_weights, save_weights
from studyloom.data import Split
from studyloom.metrics import amount, shown
from studyloom.origin import environment
from studyloom.question import SECTIONS
from studyloom.stages import Plan, Stage, Trainings
from studyloom.train import Training, predict

WRONG = 20  # of the wrong test images, those that the winner is surest of
POINTS = 1000  # predictions at most that are kept for the report
# Quantiles 0.975 of Student's t, for 1 to 30 degrees of freedom; above, that of the normal distribution is near.
T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL975 = 1.960

NO_TEST = "the objective is a function: there is nothing to test, and no network"


class NoWinner(RuntimeError):
    """The final trainings failed; says which."""


def read(run_dir: Path) -> dict[str, Any] | None:
    """What winner.json holds; None where there is none."""
    try:
        found = json.loads((run_dir / "winner.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_of(found: Mapping[str, Any], plan: Plan) -> bool:
    """Whether an answer is that of these very trainings."""
    return found.get("stage") == plan.last.record.name


def crown(plan: Plan, test: Callable[[], Split], command: Sequence[str]) -> dict[str, Any]:
    """Tests winner and baseline and writes winner.{json,yaml,pt} and model_card.md below the run directory.

    Of a function of one's own there is nothing to test: its winner is the one of the re-evaluation, without a network.

    Args:
        test: opens the test part; called once, if at all.
        command: how the study's page is called.

    Raises:
        NoWinner: a final training has failed.
        OSError: a file cannot be written.
    """
    stage, run_dir, metric = plan.last, plan.run_dir, plan.question.metric
    trainings = stage.asked
    assert isinstance(trainings, Trainings)
    found = {
        "study": plan.search.record.name,
        "stage": stage.record.name,
        "trials": plan.search.trials,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **judged(plan),
        "metric": {"name": metric.name, "direction": metric.direction},
        "rule": str(plan.rule),
        "keeps": plan.rule.holds(plan.known(plan.winner)),
        "test": None,
        "seeds": [trainings.fresh(seed) for seed in range(trainings.seeds)],
        "command": list(command),
    }
    if plan.question.tested:
        tested, network = examine(plan, trainings, test)
        found |= tested
        save_weights(run_dir / "winner.pt", network)
        write(run_dir / "model_card.md", card(found, plan))
    else:
        found |= {"note": NO_TEST, "environment": environment(torch.device("cpu"))}
    again = shlex.join([*command, "--config-dir", str(run_dir), "--config-name", "winner"])
    header = f"# The winner of {found['study']}, trial {plan.winner}, and this does all of it once more:\n# {again}\n"
    config.write_yaml(run_dir / "winner.yaml", configuration(plan), header)
    write(run_dir / "winner.json", json.dumps(found, indent=1))  # last: it says that the others are there
    return found


def examine(plan: Plan, trainings: Trainings, test: Callable[[], Split]) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """What winner and baseline are worth on the test part, which is opened for it, and the winner's first network."""
    split = plan.material.split
    assert split is not None
    seeds, metric = range(trainings.seeds), plan.question.metric
    networks = {n: [weights(plan.retraining, split, n, seed) for seed in seeds] for n in trainings.candidates}
    sealed = test().to(split.inputs.device)
    outputs = {n: [answers(trainings, n, network, sealed) for network in each] for n, each in networks.items()}
    targets = sealed.targets.cpu()
    values = {n: [metric(made, targets) for made in each] for n, each in outputs.items()}
    found = {
        "test": compared(values, plan.winner, plan.baseline())
        | {
            "examples": len(targets),
            "references": {rule: metric(said.cpu(), targets) for rule, said in sealed.references.items()},
        },
        **shown_part(outputs[plan.winner][0], sealed),
        "epochs": trainings.job(plan.winner, 0).epochs,
        "seeds": [trainings.job(plan.winner, seed).seed for seed in seeds],
        "data": {
            "digest": split.digest,
            "test_digest": sealed.digest,
            "shape": list(sealed.shape),
            "outputs": sealed.outputs,
            "mean": split.mean,
            "std": split.std,
            "classifies": sealed.classifies,
            "names": list(sealed.names),
            "columns": list(sealed.columns),
        },
        "environment": environment(sealed.inputs.device),
    }
    return found, networks[plan.winner][0]


def weights(stage: Stage, split: Split, candidate: int, seed: int) -> dict[str, Tensor]:
    """The trained network of a candidate and seed, as the worker left it; trained here if it is on another host."""
    trainings = stage.asked
    assert isinstance(trainings, Trainings)
    assert stage.weights is not None
    numbers = {(t.params["candidate"], t.params["seed"]): t for t in stage.record.trials() if "seed" in t.params}
    trial = numbers[candidate, seed]
    if trial.value is None:
        raise NoWinner(
            f"trial {candidate} could not be trained on all data: {trial.user_attrs.get('reason', trial.state.name)}"
        )
    try:
        return load_weights(stage.weights / f"trial-{trial.number}.pt")
    except (OSError, ValueError):
        training = Training([trainings.job(candidate, seed)], split)
        list(training)
        return training.weights()[0]


def answers(trainings: Trainings, candidate: int, weights: Mapping[str, Tensor], split: Split) -> Tensor:
    """What a candidate's network makes of a split, (n, outputs), on the CPU."""
    job = trainings.job(candidate, 0)
    model = job.model(shape=split.shape, outputs=split.outputs)
    model.load_state_dict(weights)
    return predict(model, split.inputs, job.precision).cpu()


def judged(plan: Plan) -> dict[str, Any]:
    """The candidates by what the search and the re-evaluation gave; where there is but one, it wins unjudged.

    A gap is above 0 where the search had flattered a candidate.
    """
    sign = plan.question.metric.sign
    values = plan.judged
    record = plan.search.record
    searched = {trial.number: trial.values for trial in record.feasible()}
    rows = []
    for number, point in plan.candidates.items():
        row: dict[str, Any] = {"trial": number, "params": point.params, "search_value": searched[number][0]}
        if len(record.aims) > 1:
            row["costs"] = {aim.name: value for aim, value in zip(record.aims[1:], searched[number][1:], strict=True)}
        if number == plan.baseline():
            row["baseline"] = True
        if number in values:
            row |= {"values": values[number], **summary(values[number])}
            row["gap"] = sign * (row["search_value"] - row["mean"])
        rows.append(row)
    rows.sort(key=lambda row: -sign * row["mean"] if "mean" in row else math.inf)
    return {"winner": next(row for row in rows if row["trial"] == plan.winner), "candidates": rows}


def compared(values: Mapping[int, Sequence[float]], winner: int, baseline: int | None) -> dict[str, Any]:
    """Means, standard deviations and 95 % intervals over seeds; the difference is that of each seed with itself.

    Without a difference where there is no baseline, or where it has won.
    """
    found: dict[str, Any] = {"winner": {"values": values[winner], **summary(values[winner])}}
    if baseline not in (None, winner):
        found["baseline"] = {"values": values[baseline], **summary(values[baseline])}
        differences = [a - b for a, b in zip(values[winner], values[baseline], strict=True)]
        found["difference"] = summary(differences)
    return found


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, and Student's 95 % interval of the mean, of which one value has none."""
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "std": None, "interval": None}
    quantile = T975[len(values) - 2] if len(values) - 2 < len(T975) else NORMAL975
    half = quantile * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "std": stdev(values), "interval": [mean - half, mean + half]}


def shown_part(outputs: Tensor, split: Split) -> dict[str, Any]:
    """What the report shows of the test part: of classes the mistakes, of numbers what was told beside what came."""
    if split.classifies:
        return mistakes(outputs.softmax(1), split)
    every = math.ceil(len(split) / POINTS)
    told, came = outputs[::every], split.targets.cpu()[::every]
    return {"predictions": {"told": told.tolist(), "came": came.tolist(), "ordered": split.ordered}}


def mistakes(probabilities: Tensor, split: Split) -> dict[str, Any]:
    """The confusion matrix (rows are true classes), and the wrong images that the network is surest of."""
    labels, classes = split.targets.cpu(), split.outputs
    sure, predicted = probabilities.max(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True)][:WRONG]
    return {
        "confusion": confusion.tolist(),
        "classes": list(split.names) or [str(number) for number in range(classes)],
        "wrong": [
            {
                "index": index,
                "label": int(labels[index]),
                "predicted": int(predicted[index]),
                "confidence": float(sure[index]),
                "image": picture(split.inputs[index]),
            }
            for index in wrong.tolist()
        ],
    }


def picture(image: Tensor) -> str | None:
    """An image (channels, height, width) as a PNG in a data URL, its darkest value black; None if it is no picture."""
    if image.ndim != 3 or len(image) not in (1, 3):
        return None
    low, high = image.min(), image.max()
    pixels = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def configuration(plan: Plan) -> dict[str, Any]:
    """A primary config that stands where the winner stood, with nothing to search: its own winner is this one again."""
    question, point = plan.question, plan.candidates[plan.winner]
    choices = {**question.composer.choices, **point.choices, "space": "none"}
    own = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
    sections = config.plain(question.at(point), *(name for name in SECTIONS if name != "space"))
    sections["train"].pop("loss")
    study = question.config.study
    if question.rule is not None:
        sections["winner"] = {"rule": None}  # it has been chosen; the page's own rule may be another
    return {
        "defaults": [question.composer.config_name, *({f"override /{g}": o} for g, o in own.items()), "_self_"],
        "study": {"name": f"{study.name}-winner", "seed": study.seed, "trials": 1, "baseline": True},
        **sections,
    }


def card(found: Mapping[str, Any], plan: Plan) -> str:
    """The model card, in Markdown."""
    winner, test = found["winner"], found["test"]
    params = "\n".join(f"| `{name}` | `{value}` |" for name, value in winner["params"].items()) or "| as composed | |"
    assert plan.material.split is not None
    lines = [
        f"# {found['study']}: trial {winner['trial']}",
        f"Test {found['metric']['name']} {told(test['winner'])} over {len(found['seeds'])} seeds, on "
        f"{test['examples']} examples.",
    ]
    if "difference" in test:
        lines.append(f"The baseline has {told(test['baseline'])}; the difference is {difference(test)}.")
    if "gap" in winner:
        lines.append(
            f"Chosen from {found['trials']} trials. The search said {shown(winner['search_value'])}, fresh seeds and "
            f"validation parts {told(winner)}: the search had flattered it by {shown(winner['gap'], '+')}."
        )
    if "costs" in winner:
        lines.append(f"Chosen by `{found['rule']}`{costs(winner)}.")
    lines += [
        f"## Parameters\n\n| | |\n|---|---|\n{params}",
        "## Use\n\n`winner.pt` holds the weights of the first seed (`torch.load(…, weights_only=True)`), `winner.yaml` "
        f"the configuration, `winner.json` all numbers. `studyloom predict {plan.run_dir} FILE…` takes "
        f"{wanted(found['data']['shape'], found['data']['columns'])}.",
        f"## Data\n\nTrained on {len(plan.material.split.targets)} examples, sha256 `{found['data']['digest']}`, for "
        f"{found['epochs']} epochs. The test part was opened once, after the winner was chosen.",
    ]
    return "\n\n".join(lines) + "\n"


def wanted(shape: Sequence[int], columns: Sequence[str]) -> str:
    """What `studyloom predict` takes, in words."""
    sizes = " × ".join(map(str, shape))
    arrays = f".npy files of {sizes} numbers, or of several such"
    if len(shape) == 3 and shape[0] in (1, 3):
        return f"pictures and IDX files of {sizes} (channels, height, width), and {arrays}"
    if columns:
        return f"CSV files with the columns {', '.join(columns)}, and {arrays}"
    return f"CSV files with {math.prod(shape)} numbers in a line, and {arrays}"


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The answer, for a terminal."""
    test, chosen = found["test"], found["winner"]
    if test is None:
        much = f"trial {chosen['trial']}, {len(found['seeds'])} fresh seeds"
        yield f"winner    {found['metric']['name']} {told(chosen)}  {much}"
        for row in found["candidates"]:
            if row.get("baseline") and "mean" in row and row["trial"] != chosen["trial"]:
                yield f"          baseline {told(row)}"
        yield f"          selection gap {shown(chosen['gap'], '+')}"
        yield f"          {found['note']}"
        return
    much = f"trial {chosen['trial']}, {len(found['seeds'])} seeds, {test['examples']} examples{costs(chosen)}"
    yield f"test      winner {found['metric']['name']} {told(test['winner'])}  {much}"
    if "difference" in test:
        yield f"          baseline {told(test['baseline'])}"
        yield f"          difference {difference(test)}"
    for rule, value in test["references"].items():
        yield f"          {rule} {shown(value)}"
    if "gap" in chosen:
        yield f"          selection gap {shown(chosen['gap'], '+')}: {told(chosen)} on fresh seeds and validation parts"
    if not found.get("keeps", True):
        yield f"          on fresh seeds no candidate keeps to {found['rule']}; this one is the best of them"


def costs(row: Mapping[str, Any]) -> str:
    """What a candidate costs, where that was an objective too."""
    return "".join(f", {name} {amount(value)}" for name, value in row.get("costs", {}).items())


def told(values: Mapping[str, Any]) -> str:
    """Mean ± standard deviation."""
    return shown(values["mean"]) + ("" if values["std"] is None else f" ± {shown(values['std'])}")


def difference(test: Mapping[str, Any]) -> str:
    found = test["difference"]
    if found["interval"] is None:
        return shown(found["mean"], "+")
    low, high = (shown(end, "+") for end in found["interval"])
    return f"{shown(found['mean'], '+')}, 95 % interval {low} to {high}"


def write(path: Path, text: str) -> None:
    """Writes beside and renames."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
