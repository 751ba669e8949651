"""Networks for images, rows and series; configs name them by `_target_`.

A custom class works as well if it takes `shape`, and `outputs` or `classes`. The classes here can
all be built on the meta device, where tensors have no values: so large networks are checked before
the first trial without their memory.
"""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from studyloom.text import format_shape, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
NORMS = ("none", "batch", "group")
INITS = ("default", "xavier", "kaiming")
CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class MLP(nn.Sequential):
    """A multi-layer perceptron: maps (batch, *shape) to (batch, outputs), without a softmax.

    Args:
        shape: the shape of one input, without the batch.
        outputs: the number of outputs for an input.
        hidden: the widths of the hidden layers; an empty list makes a linear classifier.
        dropout: the probability after each hidden layer: one for all, or a list of one per layer.
        init: see `initialize`.
        standardize: scales inputs to mean 0 and standard deviation 1 by those of the training set,
            and outputs for numbers (not classes) back to the scale of the targets.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (128,),
        activation: str = "relu",
        dropout: float | Sequence[float] = 0.0,
        init: str = "default",
        standardize: bool = False,
    ) -> None:
        for index, width in enumerate(hidden):
            _check_positive(f"model.hidden[{index}]", width)
        _check_option("model.activation", activation, ACTIVATIONS)
        _check_option("model.init", init, INITS)
        if isinstance(dropout, (int, float)):
            dropouts = [dropout] * len(hidden)  # one for each hidden layer
        else:
            dropouts = list(dropout)
        if len(dropouts) != len(hidden):
            raise ValueError(
                f"model.dropout must be one number, or one for each of the {len(hidden)} layers of "
                f"model.hidden; got {len(dropouts)} numbers"
            )
        layers: list[nn.Module] = []
        if standardize:  # the inputs here, and the targets at the end
            layers.append(Standardize(shape[-1]))
        layers.append(nn.Flatten())
        previous_width = math.prod(shape)
        for width, probability in zip(hidden, dropouts, strict=True):
            _check_dropout(probability)
            layers.append(nn.Linear(previous_width, width))
            layers.append(ACTIVATIONS[activation]())
            layers.append(nn.Dropout(probability))
            previous_width = width
        layers.append(nn.Linear(previous_width, outputs))
        if standardize:
            layers.append(Restore(outputs))
        super().__init__(*layers)
        initialize(self, init)


class CNN(nn.Sequential):
    """A convolutional network: maps (batch, channels, height, width) to (batch, outputs).

    Each block is a 3×3 convolution, a norm, 2×2 max-pooling and the activation; dropout and one
    linear layer follow, without a softmax.

    Args:
        channels: the channels of the first block; they double from block to block.
        blocks: the number of blocks; each halves height and width.
        dropout: the probability before the linear layer.
        norm: none, batch, or group (Wu and He 2018, arXiv:1803.08494).
        init: see `initialize`.

    Raises:
        ValueError: an argument is out of its range, or the image is too small for the blocks.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        channels: int = 16,
        blocks: int = 2,
        dropout: float = 0.0,
        norm: str = "none",
        activation: str = "relu",
        init: str = "default",
    ) -> None:
        _check_positive("model.channels", channels)
        _check_positive("model.blocks", blocks)
        _check_dropout(dropout)
        _check_option("model.norm", norm, NORMS)
        _check_option("model.activation", activation, ACTIVATIONS)
        _check_option("model.init", init, INITS)
        image_channels, height, width = shape
        most_blocks = min(height, width).bit_length() - 1  # how often the shorter side is halved
        if blocks > most_blocks:
            raise ValueError(
                f"model.blocks must be at most {most_blocks}, since each halves the image of "
                f"{format_shape((height, width))}; got {blocks}"
            )

        layers: list[nn.Module] = []
        previous_channels = image_channels
        for block in range(blocks):
            block_channels = channels * 2**block
            has_bias = norm == "none"  # a norm has its own
            layers.append(nn.Conv2d(previous_channels, block_channels, 3, padding=1, bias=has_bias))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(block_channels))
            elif norm == "group":
                groups = math.gcd(8, block_channels)  # at most 8, a divisor of the channels
                layers.append(nn.GroupNorm(groups, block_channels))
            # Pooling and a monotone activation may be swapped. Pooling comes first, since it leaves
            # the activation a quarter of the pixels.
            layers.append(nn.MaxPool2d(2))
            layers.append(ACTIVATIONS[activation]())
            previous_channels = block_channels
        reduction = 2**blocks
        features = previous_channels * (height // reduction) * (width // reduction)
        super().__init__(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, outputs))
        initialize(self, init)
        # With this memory format an epoch of 3,200 images with 16 channels takes 0.33 s on one
        # thread, and 0.95 s otherwise.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Standardize(nn.Module):
    """Standardizes each feature of inputs (batch, …, features) by its mean and deviation.

    Both are measured on the training set before the first step, and are saved with the weights.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        """Measures the inputs of the training set, (n, …, features); ignores the targets."""
        rows = inputs.flatten(0, -2)  # (n × …, features)
        std, mean = torch.std_mean(rows, dim=0, correction=0)
        self.mean = mean
        # A constant feature holds no information: it becomes 0, and not NaN.
        self.std = torch.where(std > 0, std, 1.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


class StandardizeSteps(Standardize):
    """Standardizes the features of each step of an input; see `as_steps`."""

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        super().adapt(as_steps(inputs), targets)


class Restore(Standardize):
    """Scales outputs (batch, outputs) to mean and deviation of the targets in the training set.

    The loss and the metric then have the units of the data. Outputs for classes are unchanged.
    """

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        """Measures the targets of the training set, (n, outputs); ignores classes, (n,)."""
        if targets.is_floating_point():
            super().adapt(targets, targets)

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs * self.std + self.mean


class Recurrent(nn.Module):
    """A recurrent network: maps (batch, steps, features) to (batch, outputs), after the last step.

    It reads an image row by row; see `steps_of`.

    Args:
        cell: rnn (Elman's, with tanh), lstm or gru.
        hidden: the units of a layer.
        dropout: the probability after each layer but the last, and before the linear layer.
        standardize: as for the MLP, by the mean and deviation of each feature over all steps.

    Raises:
        ValueError: an argument is out of its range, or the inputs have no steps.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        cell: str = "gru",
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        _check_positive("model.hidden", hidden)
        _check_positive("model.layers", layers)
        _check_dropout(dropout)
        _check_option("model.cell", cell, CELLS)
        _, features = steps_of(shape)
        # The cells have their dropout between layers. With a single layer PyTorch warns of it.
        cell_dropout = 0.0
        if layers > 1:
            cell_dropout = dropout
        before: nn.Module = nn.Identity()
        after: nn.Module = nn.Identity()
        if standardize:
            before = StandardizeSteps(features)
            after = Restore(outputs)
        self.before = before
        self.cells = CELLS[cell](features, hidden, layers, batch_first=True, dropout=cell_dropout)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(hidden, outputs)
        self.after = after

    def forward(self, inputs: Tensor) -> Tensor:
        states, _ = self.cells(self.before(as_steps(inputs)))
        outputs: Tensor = self.after(self.last(self.dropout(states[:, -1])))
        return outputs


class Transformer(nn.Module):
    """A small encoder: maps (batch, steps, features) to (batch, outputs), by the mean over steps.

    It reads an image row by row; see `steps_of`. Source: Vaswani et al. 2017 (arXiv:1706.03762),
    with learned positions, and with norms before the layers as in Xiong et al. 2020
    (arXiv:2002.04745).

    Args:
        width: the features of each step within the layers, a multiple of heads; the feed-forward
            layers are twice as wide.
        dropout: the probability within each layer.

    Raises:
        ValueError: an argument is out of its range, or the inputs have no steps.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_positive("model.width", width)
        _check_positive("model.heads", heads)
        _check_positive("model.layers", layers)
        _check_dropout(dropout)
        if width % heads:
            raise ValueError(
                f"model.width must be a multiple of model.heads, which is {heads}; got {width}"
            )
        steps, features = steps_of(shape)
        self.first = nn.Linear(features, width)
        self.places = nn.Parameter(0.02 * torch.randn(steps, width))
        layer = nn.TransformerEncoderLayer(
            width,
            heads,
            dim_feedforward=2 * width,
            dropout=dropout,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.last = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = self.first(as_steps(inputs)) + self.places
        outputs: Tensor = self.last(self.encoder(steps).mean(dim=1))
        return outputs


def steps_of(shape: Sequence[int]) -> tuple[int, int]:
    """Returns the number of steps in an input, and the number of features in a step.

    Args:
        shape: (steps, features); (steps,) if a step is one number; or (channels, height, width) of
            an image, which is read row by row: each row is a step.
    """
    if len(shape) == 1:
        return shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3:
        channels, height, width = shape
        return height, channels * width
    raise ValueError(f"inputs must be (steps, features) or an image; got {format_shape(shape)}")


def as_steps(inputs: Tensor) -> Tensor:
    """Returns inputs (batch, *shape) as (batch, steps, features); see `steps_of`."""
    if inputs.ndim == 2:  # (batch, steps)
        return inputs[..., None]
    if inputs.ndim == 3:
        return inputs
    rows = inputs.transpose(1, 2)  # of images: (batch, height, channels, width)
    return rows.flatten(2)


def initialize(model: nn.Module, init: str) -> None:
    """Draws the weights of linear and convolutional layers, and sets their biases to zero.

    Args:
        init: xavier is uniform, Glorot and Bengio 2010; kaiming is normal over the fan-in, He et
            al. 2015 (arXiv:1502.01852); default leaves PyTorch's own, where weights and biases are
            uniform within ±1/√(fan-in).
    """
    if init == "default":
        return
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            if init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _check_option(key: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise ValueError(
            f"{key} must be one of {', '.join(options)}; got {value!r}{nearest(value, options)}"
        )


def _check_positive(key: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} must be an integer of at least 1; got {value!r}")


def _check_dropout(value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(
            f"model.dropout must be a number from 0 up to, but not including, 1; got {value!r}"
        )
