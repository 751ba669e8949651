"""The model card of a tested winner, in Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from studyloom.text import code_in_markdown, format_value, in_markdown, printable
from studyloom.winner.result import Result

if TYPE_CHECKING:
    from studyloom.data.examples import Part


def model_card(
    result: Result, run_dir: Path, data: "Part | None", sources: Mapping[str, str]
) -> str:
    """Writes the model card of a tested winner in Markdown.

    Args:
        data: the training set; None if a loop has its own.
        sources: the source code that a notebook or script defined, by name.
    """
    winner, test = result.winner, result.test
    assert test is not None
    on = f", on {test.examples} examples" if test.examples else ""
    spread = "".join(f"; {note}" for note in test.uncertainty)
    lines = [
        f"# {in_markdown(result.study)}: {winner.name}",
        f"Test {in_markdown(result.metric.name)} {test.winner.words} over "
        f"{len(result.seeds)} seeds{on}{spread}.",
    ]
    if test.baseline and test.difference:
        difference = test.difference_words
        lines.append(f"The baseline has {test.baseline.words}; the difference is {difference}.")
    if winner.reevaluation and winner.gap is not None:
        lines.append(
            f"{result.choice_words().capitalize()}. Its value in the search was "
            f"{format_value(winner.search_value)}, and {test.reevaluation_words} "
            f"{winner.reevaluation.words}. The selection gap is {format_value(winner.gap, '+')}; "
            "above 0, the search overrated it."
        )
    if winner.costs:
        costs = in_markdown(winner.costs_words)
        lines.append(f"Chosen by {code_in_markdown(result.rule)}{costs}.")
    if reused := result.reuse_words:
        lines.append(f"{reused.capitalize()}.")
    params = [
        f"| {code_in_markdown(name)} | {code_in_markdown(str(value))} |"
        for name, value in winner.params.items()
    ]
    lines.append("\n".join(["## Hyperparameters\n\n| | |\n|-|-|", *(params or ["| default | |"])]))
    if result.data is None:
        use = f"{code_in_markdown(f'studyloom.load_winner({str(run_dir)!r})')} loads it."
    else:
        command = code_in_markdown(f"studyloom predict {run_dir} FILE…")
        use = f"{command} takes {in_markdown(result.data.accepted_files)}."
    kept = "what the loop kept" if result.is_of_loop else "the weights"
    lines.append(
        f"## Use\n\n`winner.pt` holds {kept} of "
        "the first seed (`torch.load(…, weights_only=True)`), `winner.yaml` the configuration, "
        f"`winner.json` all numbers. {use}"
    )
    trained = ""
    if data is not None:
        epochs = "" if result.is_of_loop else f", for {result.epochs} epochs"
        trained = f"Trained on {len(data)} examples, sha256 `{data.digest}`{epochs}. "
    lines.append(f"## Data\n\n{trained}The test set was {test.tested_words}.")
    for name, source in sources.items():
        code = printable(source).replace("\n", "\n    ")
        lines.append(f"## Code\n\n{code_in_markdown(name)} was\n\n    {code}")
    return "\n\n".join(lines) + "\n"
