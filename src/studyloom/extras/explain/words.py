"""Which words of a text misled a network."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from studyloom.data.examples import Examples, item_at
from studyloom.data.split import Split, Tokens
from studyloom.data.training_data import Part
from studyloom.extras.explain.inputs import with_inputs

READ = 120  # words of a text that are looked at and shown, its first ones


def explain_texts(
    answer: Callable[[Part], Tensor],
    sealed: Part,
    tokens: Tokens,
    labels: Tensor,
    mistakes: Sequence[int],
) -> list[dict[str, Any]]:
    """Leaves out one word after the other, and sees how sure the network still is of its mistake.

    Occlusion (Zeiler and Fergus, ECCV 2014), of words as Li, Monroe and Jurafsky erase them (2016,
    arXiv:1612.08220). A word is left out wherever it is in the text, and what follows moves up.
    How sure the network is of its mistake is the log of how many times likelier it takes it to be
    than the truth; unlike a probability near 1, that tells by how much.

    Args:
        answer: returns the outputs of the network for a part, (n, classes), on the CPU.
        sealed: the test part.
        tokens: what its texts say in words.
        labels: the classes of the test part, int64 (n,), on the CPU.
        mistakes: the indices of wrong answers.

    Returns:
        for each its `index`; `label` and `predicted`, the classes, the `probabilities` of both, and
        the `margin`, how sure the network is of its mistake; the first `words`; `changes`, by how
        much surer it is because of each, below 0 where a word speaks for the truth; and `left`, how
        many words follow. Texts of one word, and those of which no word changes anything, are left
        out.
    """
    told = []
    for index in mistakes:
        row = _row_of(sealed, tokens, index)
        numbers = [] if row is None else tokens.numbers_of(row)
        read = numbers[:READ]
        if row is None or len({*numbers}) < 2:  # without its one word a text is empty
            continue
        different = [*dict.fromkeys(read)]
        rows = [row, *(tokens.without(row, number) for number in different)]
        outputs = answer(with_inputs(sealed, index, rows, tokens.path)).double()
        label, likely = int(labels[index]), outputs[0].softmax(0)
        predicted = int(likely.argmax())
        margins = outputs[:, predicted] - outputs[:, label]
        owed = dict(zip(different, (margins[0] - margins[1:]).tolist(), strict=True))
        changes = [round(owed[number], 4) for number in read]
        if any(changes) and all(map(math.isfinite, changes)):
            told.append(
                {
                    "index": index,
                    "label": label,
                    "predicted": predicted,
                    "probabilities": likely[[label, predicted]].tolist(),
                    "margin": round(float(margins[0]), 4),
                    "words": [tokens.word(number) for number in read],
                    "changes": changes,
                    "left": len(numbers) - len(read),
                }
            )
    return told


def _row_of(sealed: Part, tokens: Tokens, index: int) -> Tensor | None:
    """Returns the row of numbers with the text of an example."""
    if isinstance(sealed, Split):
        return sealed.inputs[index]
    assert isinstance(sealed, Examples)
    return tokens.row_of(item_at(sealed.evaluation, index))
