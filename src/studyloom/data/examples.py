"""One part of a data set whose examples are loaded when they are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from studyloom.data.fetch import Items, seeded, structure
from studyloom.data.folds import Fold, Folds, make_folds
from studyloom.data.tokens import Tokens
from studyloom.errors import TRAIN_IT_YOURSELF, DataError

SAMPLED = 16  # items of a large dataset that are looked at before the first trial
ALWAYS = 0  # the seed under which they are


@dataclass(frozen=True)
class Loading:
    """How items are loaded; no part of what a study asks, since it changes no result.

    Args:
        num_workers: processes of each trial that load batches; 0: the trial itself does.
        pin_memory: whether batches go to a GPU through pinned memory.
        persistent_workers: whether these processes outlive an epoch, training and evaluation.
            They end with the trial.
    """

    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False


@dataclass(frozen=True, eq=False)
class Examples:
    """One part of a data set whose examples are loaded when they are needed; see `Part`.

    Args:
        training: the examples as one trains on them.
        evaluation: the same as one evaluates them, followed by those of a validation part of its
            own, if there is one.
        loading: how they are loaded.
        digest: identifies the content.
        outputs: how many numbers a network returns for each input; None if that is not known.
        shape: of one input; None if it is not one tensor.
        classifies: whether the targets are classes.
        targets: the class of each training example, int64 (n,); None if it is not known.
        weights: with which each training example is drawn, (n,); None for each once an epoch.
        groups: of each training example, int64 (n,); None for no groups.
        ordered: whether the examples are in time order.
        names: of the classes.
        group_names: the group of each example of a test part; empty for no groups.
        tokens: which words the numbers of texts stand for; None where there are no texts.
        kind: what the inputs are made of, such as float32; None if they are not one tensor.
        device: where batches are moved to.
    """

    in_memory: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[Mapping[str, Tensor]] = {}
    mean: ClassVar[float] = 0.0
    std: ClassVar[float] = 1.0

    training: Items
    evaluation: Items
    loading: Loading
    digest: str
    outputs: int | None
    shape: tuple[int, ...] | None
    classifies: bool
    targets: Tensor | None = None
    weights: Tensor | None = None
    groups: Tensor | None = None
    ordered: bool = False
    names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    tokens: Tokens | None = None
    kind: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.training)

    @property
    def _own(self) -> Tensor | None:
        """The indices of a validation part of its own, if there is one."""
        if len(self.evaluation) == len(self):
            return None
        return torch.arange(len(self), len(self.evaluation))

    def to(self, device: torch.device | str) -> "Examples":
        return replace(self, device=torch.device(device))

    def part(self, indices: Tensor | None = None, *, to_train: bool = False) -> Subset[Any]:
        """Returns the examples at some indices as a Dataset of their items.

        Args:
            indices: int64 (n,); None for all examples.
            to_train: whether as one trains on them, and not as one evaluates them.
        """
        items: Any = self.training if to_train else self.evaluation
        return Subset(items, range(len(self)) if indices is None else indices.tolist())

    def folds(self, count: int, validation: int | None, seed: int) -> Folds:
        """Divides the examples, or returns the validation part of its own."""
        if self._own is not None:
            if count > 1:
                raise DataError(
                    f"objective.folds must be 1 where the data has a validation part of its own; "
                    f"got {count}; or leave out data.valid"
                )
            return [(torch.arange(len(self)), self._own)]
        if validation is None:
            if count == 1:
                raise DataError(
                    "data.validation must be how many training examples are held out to choose "
                    "by; or name a Dataset for them as data.valid"
                )
            validation = 0
        known = self.targets if self.targets is not None else torch.zeros(len(self))
        return make_folds(known, count, validation, seed, ordered=self.ordered, groups=self.groups)

    def whole(self) -> Fold:
        """Returns all examples to train on, and those to look at meanwhile.

        A validation part of its own is never trained on.
        """
        everything = torch.arange(len(self))
        own = self._own
        return everything, everything[: max(1, len(self) // 5)] if own is None else own

    def input_at(self, index: int) -> Tensor | None:
        """Returns the input of an example as it is evaluated; None if it is not one tensor."""
        return input_of(item_at(self.evaluation, index))

    def show(self, modules: Sequence[Any], train: Tensor, part: str) -> None:
        """Shows no inputs, (n, 0), and the classes of the training examples; see `Part`.

        Raises:
            DataError: a network wants to learn from inputs, or the classes are not known.
        """
        if part == "network":
            raise DataError(
                "model: it learns from all training inputs before the first step (its method "
                "adapt, as model.standardise=true has it), and a Dataset loads them one by one; "
                "normalise them in the Dataset"
            )
        if self.targets is None:
            raise DataError(
                "loss: it learns from all training targets before the first step (its method "
                "adapt, as loss.weights=balanced has it), and the Dataset has no attribute "
                "`targets` or `labels`; give them as data.targets, or the weights as a list"
            )
        inputs, targets = torch.empty(len(train), 0), self.targets[train.cpu()].to(self.device)
        for module in modules:
            module.adapt(inputs, targets)

    def check(self) -> None:
        """Looks at some items, first and last among them.

        Raises:
            DataError: one cannot be loaded, or is made of something else than the others.
        """
        views = (self.training, self.evaluation)
        for items in views if self.training is not self.evaluation else views[:1]:
            known, first = "", 0
            for index in some_of(len(items)):
                made = structure(item_at(items, index))
                known = known or made
                if made != known and items.collate is None:
                    raise DataError(
                        f"{items.parts[0][0]}: all items must be made of the same; item {first} "
                        f"is {known}, and item {index} is {made}; a data.collate of yours may make "
                        f"batches of them, {TRAIN_IT_YOURSELF}"
                    )

    def for_preflight(self) -> "Examples":
        """Returns the same for tries before the first trial: each item is loaded once, and here."""
        return replace(
            self,
            training=self.training.cached(),
            evaluation=self.evaluation.cached(),
            loading=Loading(),
            device=torch.device("cpu"),
        )

    def to_rehearse(self, train: Tensor) -> Tensor:
        return train


def some_of(count: int) -> list[int]:
    """Returns some evenly spaced indices, the first and the last among them."""
    if count <= SAMPLED:
        return list(range(count))
    return [k * (count - 1) // (SAMPLED - 1) for k in range(SAMPLED)]


def item_at(items: Items, index: int) -> Any:
    """Returns an item, the same each time also of a Dataset that draws."""
    with seeded(ALWAYS):
        return items.item(index)


def input_of(item: Any) -> Tensor | None:
    """Returns the input of an item `(input, target)`; None if it is not one tensor."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return None
    return _as_tensor(item[0])


def target_of(item: Any) -> Tensor | None:
    """Returns the target of an item `(input, …, target)`; None if it is no tensor."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        return None
    return _as_tensor(item[-1])


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic | int | float):
        try:
            return torch.as_tensor(value)
        except TypeError:  # an array of words
            return None
    return None
