"""Everything that explains a network on the test part, as entries of winner.json."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from studyloom.config.values import describe_error
from studyloom.data.split import Split
from studyloom.data.training_data import Part
from studyloom.data.transform import is_picture
from studyloom.extras.explain.calibration import calibrate
from studyloom.extras.explain.groups import by_group
from studyloom.extras.explain.occlusion import explain_mistakes
from studyloom.extras.explain.permutation import permute_columns
from studyloom.extras.explain.words import explain_texts
from studyloom.metrics import Metric
from studyloom.training.job import Job
from studyloom.training.trainer import evaluate_network

PICTURES = 8  # mistakes of which the parts are looked at: 169 evaluations each
TEXTS = 8  # mistakes of which the words are looked at: 121 evaluations each, at most
log = logging.getLogger(__name__)


def explain(
    job: Job,
    network: nn.Module,
    metric: Metric,
    outputs: Tensor,
    targets: Tensor,
    sealed: Part,
    mistakes: list[int],
    seed: int,
) -> dict[str, Any]:
    """Explains what a network has answered on the test part, which is open.

    Args:
        job: whose network it is, evaluated as studyloom does.
        network: with the weights of the winner.
        metric: of the study.
        outputs: of the network on the test part, (n, …), on the CPU.
        targets: those of the test part, on the CPU.
        sealed: the test part.
        mistakes: the indices of the most confident wrong answers, the most confident first.
        seed: of what is drawn.

    Returns:
        `calibration` and `groups` of classes, `columns` of a table, `occlusions` of pictures and
        `texts` with their words, as far as they can be told. What fails is left out with a warning.
    """
    told: dict[str, Any] = {}
    classifies = sealed.classifies and outputs.ndim == 2 and targets.ndim == 1

    def answer(part: Part) -> Tensor:
        return evaluate_network(job, network, part)[0].cpu()

    def add(name: str, explanation: Callable[[], Any]) -> None:
        try:
            found = explanation()
        except Exception as error:  # of the user's own code; the test has been made
            log.warning("the report lacks the winner's %s: %s", name, describe_error(error))
            return
        if found:
            told[name] = found

    if classifies:
        add("calibration", lambda: calibrate(outputs.softmax(1), targets))
    add("groups", lambda: by_group(metric, outputs, targets, sealed))
    if isinstance(sealed, Split) and sealed.columns and sealed.inputs.ndim == 2:
        add("columns", lambda: permute_columns(metric, answer, sealed, outputs, targets, seed))
    if classifies and sealed.shape is not None and is_picture(sealed.shape):
        add("occlusions", lambda: explain_mistakes(answer, sealed, mistakes[:PICTURES]))
    if classifies and (tokens := sealed.tokens) is not None:
        some = mistakes[:TEXTS]
        add("texts", lambda: explain_texts(answer, sealed, tokens, targets, some))
    return told
