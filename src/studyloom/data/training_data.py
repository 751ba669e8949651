"""What a question is trained on, passed around as one: the source, its training part, the folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from studyloom.data.folds import Fold, Folds
from studyloom.data.shared import share
from studyloom.data.split import Split
from studyloom.data.tokens import Tokens


class Part(Protocol):
    """One part of a data set: a `Split` in memory, or `Examples` that are loaded one by one.

    Its length is the number of examples to train on. Whoever works with one asks for nothing else;
    `training.batches` makes batches of either.

    Attributes:
        in_memory: whether it is a Split, which has `inputs`.
        device: where its batches are.
        shape: of one input; None if it is not one tensor.
        outputs: how many numbers a network returns for an input; None if that is not known.
        digest: identifies the content.
        classifies: whether the targets are classes.
        targets: of each example; None if they are not known without loading them.
        ordered: whether the examples are in time order.
        kind: the type of the inputs, such as float32; None if they are not one tensor.
        mean: what was subtracted from pixels on the scale 0 to 1.
        std: what they were divided by after that.
        names: the names of the classes, or of the numbers.
        columns: the names of the inputs.
        group_names: the group of each example of a test part, such as who speaks; empty if there
            are no groups.
        tokens: which words the numbers of texts stand for; None where there are no texts.
        references: predictions of rules that need no network, by the rule's name.
    """

    in_memory: ClassVar[bool]

    @property
    def device(self) -> torch.device: ...
    @property
    def shape(self) -> tuple[int, ...] | None: ...
    @property
    def outputs(self) -> int | None: ...
    @property
    def digest(self) -> str: ...
    @property
    def classifies(self) -> bool: ...
    @property
    def targets(self) -> Tensor | None: ...
    @property
    def ordered(self) -> bool: ...
    @property
    def kind(self) -> str | None: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def group_names(self) -> tuple[str, ...]: ...
    @property
    def tokens(self) -> Tokens | None: ...
    @property
    def references(self) -> Mapping[str, Tensor]: ...

    def __len__(self) -> int: ...
    def to(self, device: torch.device | str) -> "Part":
        """Returns the same with its batches on a device."""
        ...

    def part(self, indices: Tensor | None = None, *, to_train: bool = False) -> Any:
        """Returns the examples at some indices, or all, as a Dataset; as one trains on them."""
        ...

    def folds(self, count: int, validation: int, seed: int) -> Folds:
        """Divides the examples to train and to choose by; see `make_folds`."""
        ...

    def whole(self) -> Fold:
        """Returns all examples to train on, and some to look at meanwhile."""
        ...

    def input_at(self, index: int) -> Tensor | None:
        """Returns the input of an example; None if it is not one tensor."""
        ...

    def show(self, modules: Sequence[Any], train: Tensor, part: str) -> None:
        """Shows the training examples to modules with a method `adapt(inputs, targets)`.

        Args:
            modules: of a network or a loss.
            train: the indices of the training part, int64 (n,).
            part: network or loss, to which the modules belong.

        Raises:
            DataError: it cannot be known without loading all examples.
        """
        ...

    def check(self) -> None:
        """Checks the values, which may come from a class of the user's own.

        Raises:
            DataError: they cannot be trained on.
        """
        ...

    def for_preflight(self) -> "Part":
        """Returns the same for tries before the first trial."""
        ...

    def to_rehearse(self, train: Tensor) -> Tensor:
        """Puts first what is tried before the first trial.

        Args:
            train: indices of training examples, int64 (n,).
        """
        ...


@dataclass(frozen=True)
class TrainingData:
    """The data that networks are trained on and judged by; empty if the objective is a function.

    Attributes:
        source: what the config names under `data`, such as `Embedded` or `Table`.
        split: its training part.
        folds: training and validation indices into the split.
    """

    source: Any = None
    split: Part | None = None
    folds: Folds = ()

    @property
    def digest(self) -> str:
        return "" if self.split is None else self.split.digest

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.split is None else self.split.device

    def test(self) -> Part:
        """Loads the test part."""
        split: Part = self.source.test()
        return split

    def shared(self, key: str) -> "TrainingData":
        """Returns this with its training part in one copy for all processes of the host.

        Args:
            key: what the part follows from.
        """
        if not isinstance(self.split, Split):  # examples are loaded when they are needed
            return self
        return replace(self, split=share(self.split, key))

    def to(self, device: torch.device) -> "TrainingData":
        return self if self.split is None else replace(self, split=self.split.to(device))
