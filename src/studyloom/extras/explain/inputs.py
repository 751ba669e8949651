"""An example of the test part with other inputs in the place of its own.

They come to the network as those of the test do: through the collate function, in batches of the
same size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studyloom.data.examples import Examples, Items, Loading, item_at
from studyloom.data.split import Split
from studyloom.data.training_data import Part


def with_inputs(
    sealed: Part, index: int, inputs: Sequence[Tensor], path: Sequence[int | str] = (0,)
) -> Part:
    """Returns a part of one example, as often as there are inputs for it.

    Args:
        sealed: the test part.
        index: of the example.
        inputs: each in the place of its own, and of the same type.
        path: the positions and keys that lead to the input in an item of a Dataset.
    """
    if isinstance(sealed, Split):
        targets = sealed.targets[index].repeat(len(inputs))
        return replace(sealed, inputs=torch.stack([*inputs]), targets=targets, references={})
    assert isinstance(sealed, Examples)
    item = item_at(sealed.evaluation, index)
    items = [_put(item, [*path], each) for each in inputs]
    view = Items((("data.test", items),), sealed.evaluation.collate)
    return replace(sealed, training=view, evaluation=view, loading=Loading(), group_names=())


def _put(tree: Any, path: list[int | str], part: Tensor) -> Any:
    if not path:
        return part.numpy() if isinstance(tree, np.ndarray) else part
    step: Any = path[0]
    changed = _put(tree[step], path[1:], part)
    if isinstance(tree, Mapping):
        return {**tree, step: changed}
    parts = [*tree]
    parts[step] = changed
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
