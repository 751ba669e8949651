"""The files of a result: winner.json, its configurations and weights, and the model card."""

from pathlib import Path

from studyloom.config.values import as_yaml
from studyloom.text import code_in_markdown, format_value, in_markdown, printable
from studyloom.views import words
from studyloom.winner.assemble_result import EvaluatedWinner
from studyloom.winner.result import CARD, SIMPLE, Result


def write_result_files(winner: EvaluatedWinner, run_dir: Path) -> Result:
    """Writes winner.{json,yaml,pt} and model_card.md below a run directory.

    Returns:
        The result, with the digests of these files.

    Raises:
        OSError: a file cannot be written.
    """
    result = winner.result
    again = (*result.command, "--config-dir", str(run_dir), "--config-name", "winner")
    # No command can import what a script or notebook defines. On another machine the file is read
    # as an untrusted config, and names the packages to trust.
    head = words.head_winner_config(result, again, is_importable=not winner.sources)
    files = {"winner.yaml": f"{head}{as_yaml(winner.config)}".encode()}
    if winner.simple_config is not None:
        head = words.head_simple_config(result)
        files[SIMPLE] = f"{head}{as_yaml(winner.simple_config)}".encode()
    if winner.weights is not None:
        files["winner.pt"] = winner.weights
    if result.test is not None:
        files[CARD] = model_card(winner, run_dir).encode()
    return result.write(run_dir, files)


def model_card(evaluated: EvaluatedWinner, run_dir: Path) -> str:
    """Writes the model card of a tested winner in Markdown."""
    result = evaluated.result
    winner, test = result.winner, result.test
    assert test is not None
    on = f", on {test.examples} examples" if test.examples else ""
    notes = "".join(f"; {note}" for note in words.explain_uncertainty(test))
    lines = [
        f"# {in_markdown(result.study)}: {words.name_trial(winner)}",
        f"Test {in_markdown(result.metric.name)} {words.format_mean(test.winner)} over "
        f"{len(result.seeds)} seeds{on}{notes}.",
    ]
    if test.baseline is not None and test.difference is not None:
        baseline, difference = words.format_mean(test.baseline), words.describe_difference(test)
        lines.append(f"The baseline has {baseline}; the difference is {difference}.")
    if winner.reevaluation is not None and winner.gap is not None:
        lines.append(
            f"{words.describe_choice(result).capitalize()}. Its value in the search was "
            f"{format_value(winner.search_value)}, and {words.describe_new_seeds(test)} "
            f"{words.format_mean(winner.reevaluation)}. The selection gap is "
            f"{format_value(winner.gap, '+')}; above 0, the search overrated it."
        )
    if winner.costs:
        costs = in_markdown(words.format_costs(winner.costs))
        lines.append(f"Chosen by {code_in_markdown(result.rule)}{costs}.")
    reuse = words.describe_reuse(result)
    if reuse:
        lines.append(f"{reuse.capitalize()}.")
    lines.append(_hyperparameters(result))
    lines.append(_use(result, run_dir))
    lines.append(_data(evaluated))
    for name, source in evaluated.sources.items():
        code = printable(source).replace("\n", "\n    ")
        lines.append(f"## Code\n\n{code_in_markdown(name)} was\n\n    {code}")
    return "\n\n".join(lines) + "\n"


def _hyperparameters(result: Result) -> str:
    rows = [
        f"| {code_in_markdown(name)} | {code_in_markdown(str(value))} |"
        for name, value in result.winner.params.items()
    ]
    return "\n".join(["## Hyperparameters\n\n| | |\n|-|-|", *(rows or ["| default | |"])])


def _use(result: Result, run_dir: Path) -> str:
    if result.data is None:
        use = f"{code_in_markdown(f'studyloom.load_winner({str(run_dir)!r})')} loads it."
    else:
        command = code_in_markdown(f"studyloom predict {run_dir} FILE…")
        use = f"{command} takes {in_markdown(words.describe_accepted_files(result.data))}."
    kept = "what the loop kept" if result.is_of_loop else "the weights"
    return (
        f"## Use\n\n`winner.pt` holds {kept} of "
        "the first seed (`torch.load(…, weights_only=True)`), `winner.yaml` the configuration, "
        f"`winner.json` all numbers. {use}"
    )


def _data(evaluated: EvaluatedWinner) -> str:
    result, data = evaluated.result, evaluated.training_set
    assert result.test is not None
    trained = ""
    if data is not None:
        epochs = "" if result.is_of_loop else f", for {result.epochs} epochs"
        trained = f"Trained on {len(data)} examples, sha256 `{data.digest}`{epochs}. "
    return f"## Data\n\n{trained}The test set was {words.describe_test_use(result.test)}."
