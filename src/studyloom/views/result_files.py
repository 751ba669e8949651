"""The files of a result: winner.json, its configurations and weights, and the model card."""

from pathlib import Path

from studyloom.config.values import resolved_as_yaml
from studyloom.text import code_in_markdown, format_value, in_markdown, printable
from studyloom.views import words
from studyloom.winner.assemble_result import EvaluatedWinner
from studyloom.winner.result import CARD, SIMPLE, Result, Scores


def write_result_files(winner: EvaluatedWinner, run_dir: Path) -> Result:
    """Writes winner.{json,yaml,pt} and model_card.md into a run directory.

    Returns:
        The result, with the digests of these files.

    Raises:
        OSError: a file cannot be written.
    """
    result = winner.result
    # The command that trains the winner again; None if a notebook or script has defined some of the
    # study's code (`winner.sources`), which no command can import.
    command = None
    if not winner.sources:
        command = [*result.command, "--config-dir", str(run_dir), "--config-name", "winner"]
    comment = words.comment_winner_config(result, command)
    files = {"winner.yaml": f"{comment}{resolved_as_yaml(winner.config)}".encode()}
    if winner.simple_config is not None:
        comment = words.comment_simple_config(result)
        files[SIMPLE] = f"{comment}{resolved_as_yaml(winner.simple_config)}".encode()
    if winner.weights is not None:
        files["winner.pt"] = winner.weights
    if result.test is not None:
        files[CARD] = write_model_card(winner, result.test, run_dir).encode()
    return result.write(run_dir, files)


def write_model_card(evaluated: EvaluatedWinner, test: Scores, run_dir: Path) -> str:
    """Writes the model card of a tested winner in Markdown."""
    result = evaluated.result
    winner = result.winner
    parts = [f"# {in_markdown(result.study)}: {words.name_trial(winner)}"]
    parts.append(_write_test(result, test))
    if test.baseline is not None and test.difference is not None:
        baseline = words.format_mean(test.baseline)
        difference = words.describe_difference(test)
        parts.append(f"The baseline has {baseline}; the difference is {difference}.")
    if winner.reevaluation is not None and winner.selection_gap is not None:
        parts.append(
            f"{words.describe_choice(result).capitalize()}. Its value in the search was "
            f"{format_value(winner.search_value)}, and {words.describe_new_seeds(test)} "
            f"{words.format_mean(winner.reevaluation)}. The selection gap is "
            f"{format_value(winner.selection_gap, '+')}; above 0, the search overrated it."
        )
    if winner.costs:
        costs = in_markdown(words.format_costs(winner.costs))
        parts.append(f"Chosen by {code_in_markdown(result.rule)}{costs}.")
    reuse = words.describe_reuse(result)
    if reuse:
        parts.append(f"{reuse.capitalize()}.")
    parts.append(_write_hyperparameters(result))
    parts.append(_write_use(result, run_dir))
    parts.append(_write_data(evaluated, test))
    for name, source in evaluated.sources.items():
        code = printable(source).replace("\n", "\n    ")
        parts.append(f"## Code\n\n{code_in_markdown(name)} was\n\n    {code}")
    return "\n\n".join(parts) + "\n"


def _write_test(result: Result, test: Scores) -> str:
    """Says what the winner reached on the test set, and how certain that is."""
    mean = f"Test {in_markdown(result.metric.name)} {words.format_mean(test.winner)}"
    examples = ""
    if test.examples:
        examples = f", on {test.examples} examples"
    notes = "".join(f"; {note}" for note in words.explain_uncertainty(test))
    return f"{mean} over {len(result.seeds)} seeds{examples}{notes}."


def _write_hyperparameters(result: Result) -> str:
    """Writes the hyperparameters of the winner as a table."""
    lines = ["## Hyperparameters\n", "| | |", "|-|-|"]
    for name, value in result.winner.params.items():
        lines.append(f"| {code_in_markdown(name)} | {code_in_markdown(str(value))} |")
    if not result.winner.params:
        lines.append("| default | |")
    return "\n".join(lines)


def _write_use(result: Result, run_dir: Path) -> str:
    """Says what the files of the winner hold, and how it is loaded or predicts."""
    content = "the weights"
    if result.is_of_loop:
        content = "what the loop kept"
    if result.data is None:
        call = code_in_markdown(f"studyloom.load_winner({str(run_dir)!r})")
        use = f"{call} loads it."
    else:
        command = code_in_markdown(f"studyloom predict {run_dir} FILE…")
        use = f"{command} takes {in_markdown(words.describe_accepted_files(result.data))}."
    return (
        f"## Use\n\n`winner.pt` holds {content} of "
        "the first seed (`torch.load(…, weights_only=True)`), `winner.yaml` the configuration, "
        f"`winner.json` all numbers. {use}"
    )


def _write_data(evaluated: EvaluatedWinner, test: Scores) -> str:
    """Says what the winner was trained on, and how often the test set was used."""
    result = evaluated.result
    training_set = evaluated.training_set
    sentences = []
    if training_set is not None:
        trained = f"Trained on {len(training_set)} examples, sha256 `{training_set.digest}`"
        if not result.is_of_loop:  # how many epochs a custom training loop has is not known
            trained += f", for {result.epochs} epochs"
        sentences.append(f"{trained}.")
    sentences.append(f"The test set was {words.describe_test_use(test)}.")
    return f"## Data\n\n{' '.join(sentences)}"
