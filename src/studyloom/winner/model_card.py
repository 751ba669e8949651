"""The model card of a winner, and what one must know of the data to use it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from studyloom.config.values import value_at
from studyloom.data.split import Split
from studyloom.data.training_data import Part
from studyloom.data.transform import InputRange, Reader, describe_transform, is_picture
from studyloom.text import code_in_markdown, format_shape, format_value, in_markdown
from studyloom.training.batches import batch_dtype
from studyloom.training.job import Job
from studyloom.winner.answer import (
    committee_lines,
    format_choice,
    format_costs,
    format_difference,
    format_mean,
    format_race,
    format_reuse,
    format_tested,
    format_uncertainty,
)
from studyloom.winner.stages import Plan


def model_card(answer: Mapping[str, Any], plan: Plan) -> str:
    """Writes the model card in Markdown.

    Args:
        answer: what winner.json will hold.
        plan: the stages of the run.
    """
    winner, test = answer["winner"], answer["test"]
    params = (
        "\n".join(
            f"| {code_in_markdown(name)} | {code_in_markdown(str(value))} |"
            for name, value in winner["params"].items()
        )
        or "| as composed | |"
    )
    spread = "; ".join(format_uncertainty(test))
    lines = [
        f"# {in_markdown(answer['study'])}: trial {winner['trial']}",
        f"Test {in_markdown(answer['metric']['name'])} {format_mean(test['winner'])} over "
        f"{len(answer['seeds'])} seeds"
        f"{', on ' + str(test['examples']) + ' examples' if test['examples'] else ''}"
        f"{'; ' * bool(spread)}{spread}.",
    ]
    if "difference" in test:
        lines.append(
            f"The baseline has {format_mean(test['baseline'])}; "
            f"the difference is {format_difference(test)}."
        )
    if "gap" in winner:
        lines.append(
            f"{format_choice(answer).capitalize()}. Its value in the search was "
            f"{format_value(winner['search_value'])}, and on fresh seeds and validation parts "
            f"{format_mean(winner)}. The selection gap is {format_value(winner['gap'], '+')}; "
            "above 0 the search had flattered it."
        )
    if "costs" in winner:
        lines.append(
            f"Chosen by {code_in_markdown(answer['rule'])}{in_markdown(format_costs(winner))}."
        )
    if race := format_race(answer):
        lines.append("\n".join(f"* {in_markdown(line[0].upper() + line[1:])}." for line in race))
    if reused := format_reuse(answer):
        lines.append(f"{reused.capitalize()}.")
    lines += [
        f"## Parameters\n\n| | |\n|---|---|\n{params}",
        "## Use\n\n`winner.pt` holds "
        f"{'the weights' if answer['data'] else 'what the loop kept'} of the first seed "
        "(`torch.load(…, weights_only=True)`), `winner.yaml` the configuration, `winner.json` all "
        f"numbers. {use(answer, plan)}",
        f"## Data\n\n{trained_on(answer, plan)}The test part was {format_tested(test)}.",
    ]
    if sentences := [*committee_lines(answer)]:
        lines.insert(-1, committee_section(sentences, str(plan.run_dir)))
    return "\n\n".join(lines) + "\n"


def committee_section(sentences: Sequence[str], run_dir: str) -> str:
    """Writes the section on the committee.

    Args:
        sentences: what there is to say of it.
        run_dir: as the user names it.
    """
    predict = code_in_markdown(f"studyloom predict {run_dir} --committee FILE…")
    load = code_in_markdown(f"studyloom.load_winner({run_dir!r}, committee=True)")
    about = (
        f"`committee.pt` averages several networks: {predict}, or {load}. It was tested beside "
        "the winner, when the test part was open.\n"
    )
    told = (f"* {in_markdown(sentence)}" for sentence in sentences)
    return "\n".join(["## Committee\n", about, *told])


def use(answer: Mapping[str, Any], plan: Plan) -> str:
    """Describes how the winner is used."""
    if answer["data"] is None:
        return f"{code_in_markdown(f'studyloom.load_winner({str(plan.run_dir)!r})')} loads it."
    command = code_in_markdown(f"studyloom predict {plan.run_dir} FILE…")
    return f"{command} takes {in_markdown(accepted_files(answer['data']))}."


def trained_on(answer: Mapping[str, Any], plan: Plan) -> str:
    """Describes the data and the epochs of the final training, as far as they are known."""
    if (split := plan.data.split) is None:
        return ""
    epochs = f", for {answer['epochs']} epochs" if answer["data"] else ""
    return f"Trained on {len(split)} examples, sha256 `{split.digest}`{epochs}. "


def accepted_files(data: Mapping[str, Any]) -> str:
    """Describes the files that `studyloom predict` takes.

    Args:
        data: what winner.json says of the data.
    """
    shape, columns, transform = data["shape"], data["columns"], data["transform"]
    whole = data.get("loaded") and str(data.get("kind")).startswith("int")
    if data.get("reads"):
        return f"files that {transform['_target_']} reads"
    if shape is None or whole:
        return "no files, since its inputs are not one tensor of numbers"
    sizes = format_shape(shape)
    arrays = f".npy files of {sizes} numbers, or of several such"
    if is_picture(shape):
        background = (transform or {}).get("background")
        inverted = f", those without a {background} background inverted" if background else ""
        return (
            f"pictures of any size, made {sizes} (channels, height, width){inverted}, IDX files of "
            f"that size, and {arrays}"
        )
    if columns:
        return f"CSV files with the columns {', '.join(columns)}, and {arrays}"
    return f"CSV files with {math.prod(shape)} numbers in a line, and {arrays}"


def describe_data(plan: Plan, job: Job, split: Part, sealed: Part) -> dict[str, Any]:
    """Describes the data, as far as one must know them to use the network.

    Args:
        plan: the stages of the run.
        job: of the network.
        split: the training part.
        sealed: the test part.
    """
    return {
        "digest": split.digest,
        "test_digest": sealed.digest,
        "shape": None if sealed.shape is None else list(sealed.shape),
        "dtype": _dtype_of_inputs(job, split),
        "outputs": sealed.outputs,
        "mean": split.mean,
        "std": split.std,
        "classifies": sealed.classifies,
        "names": list(sealed.names),
        "columns": list(sealed.columns),
        "inputs": None if (seen := InputRange.of(split)) is None else asdict(seen),
        "loaded": not split.in_memory,
        "kind": split.kind,
        "reads": isinstance(getattr(plan.data.source, "transform", None), Reader),
        "transform": describe_transform(
            plan.data.source, value_at(plan.question.config, "data.transform"), split
        ),
    }


def _dtype_of_inputs(job: Job, split: Part) -> str:
    """Returns the name of the type in which the network of a job gets inputs, such as float32."""
    if not isinstance(split, Split) or split.inputs.is_floating_point():
        return "float32"
    network = job.model(shape=split.shape, outputs=split.outputs)
    return str(batch_dtype(job, network, split)).removeprefix("torch.")
