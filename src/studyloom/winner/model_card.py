"""TODO winner.model_card."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from studyloom.text import format_value
from studyloom.winner.answer import format_costs, format_difference, format_mean
from studyloom.winner.stages import Plan


def model_card(found: Mapping[str, Any], plan: Plan) -> str:
    """The model card, in Markdown."""
    winner, test = found["winner"], found["test"]
    params = (
        "\n".join(f"| `{name}` | `{value}` |" for name, value in winner["params"].items())
        or "| as composed | |"
    )
    assert plan.data.split is not None
    lines = [
        f"# {found['study']}: trial {winner['trial']}",
        f"Test {found['metric']['name']} {format_mean(test['winner'])} over {len(found['seeds'])} seeds, on "
        f"{test['examples']} examples.",
    ]
    if "difference" in test:
        lines.append(
            f"The baseline has {format_mean(test['baseline'])}; the difference is {format_difference(test)}."
        )
    if "gap" in winner:
        lines.append(
            f"Chosen from {found['trials']} trials. The search said {format_value(winner['search_value'])}, fresh seeds and "
            f"validation parts {format_mean(winner)}: the search had flattered it by {format_value(winner['gap'], '+')}."
        )
    if "costs" in winner:
        lines.append(f"Chosen by `{found['rule']}`{format_costs(winner)}.")
    lines += [
        f"## Parameters\n\n| | |\n|---|---|\n{params}",
        "## Use\n\n`winner.pt` holds the weights of the first seed (`torch.load(…, weights_only=True)`), `winner.yaml` "
        f"the configuration, `winner.json` all numbers. `studyloom predict {plan.run_dir} FILE…` takes "
        f"{accepted_files(found['data']['shape'], found['data']['columns'])}.",
        f"## Data\n\nTrained on {len(plan.data.split.targets)} examples, sha256 `{found['data']['digest']}`, for "
        f"{found['epochs']} epochs. The test part was opened once, after the winner was chosen.",
    ]
    return "\n\n".join(lines) + "\n"


def accepted_files(shape: Sequence[int], columns: Sequence[str]) -> str:
    """What `studyloom predict` takes, in words."""
    sizes = " × ".join(map(str, shape))
    arrays = f".npy files of {sizes} numbers, or of several such"
    if len(shape) == 3 and shape[0] in (1, 3):
        return f"pictures and IDX files of {sizes} (channels, height, width), and {arrays}"
    if columns:
        return f"CSV files with the columns {', '.join(columns)}, and {arrays}"
    return f"CSV files with {math.prod(shape)} numbers in a line, and {arrays}"
