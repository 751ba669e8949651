"""Networks for images, rows and series. A class of one's own works as well: it takes shape, and outputs or classes.

All can be built on the meta device, which is how every branch of a space is checked before the first trial.
"""

import difflib
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

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
    """A multi-layer perceptron: (batch, *shape) to (batch, outputs), without a softmax.

    hidden: the widths of the hidden layers; empty makes a linear classifier. activation: relu, tanh, sigmoid or gelu.
    dropout: after each hidden layer, one probability or one per layer. init: see `initialise`. standardise: inputs to
    mean 0 and deviation 1, and of numbers the outputs back, by what the training part is like. Raises ValueError.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (128,),
        activation: str = "relu",
        dropout: float | Sequence[float] = 0.0,
        init: str = "default",
        standardise: bool = False,
    ) -> None:
        for place, width in enumerate(hidden):
            _at_least_one(f"model.hidden[{place}]", width)
        _one_of("model.activation", activation, ACTIVATIONS)
        _one_of("model.init", init, INITS)
        dropouts = [dropout] * len(hidden) if isinstance(dropout, (int, float)) else list(dropout)
        if len(dropouts) != len(hidden):
            raise ValueError(
                f"model.dropout has {len(dropouts)} numbers, model.hidden {len(hidden)} layers: "
                "expected one number for all, or one per layer"
            )
        layers: list[nn.Module] = [Standardise(shape[-1])] if standardise else []
        layers.append(nn.Flatten())
        inputs = math.prod(shape)
        for width, probability in zip(hidden, dropouts, strict=True):
            _probability("model.dropout", probability)
            layers += [nn.Linear(inputs, width), ACTIVATIONS[activation](), nn.Dropout(probability)]
            inputs = width
        layers.append(nn.Linear(inputs, outputs))
        super().__init__(*layers, *([Restore(outputs)] if standardise else []))
        initialise(self, init)


class CNN(nn.Sequential):
    """A convolutional network: (batch, channels, height, width) to (batch, outputs), without a softmax.

    blocks times: 3×3 convolution (`channels` of them, doubling from block to block), norm (none, batch, or group: Wu
    and He 2018, arXiv:1803.08494), 2×2 max-pool, activation; then dropout and one linear layer. init: see `initialise`.
    Raises ValueError.
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
        _at_least_one("model.channels", channels)
        _at_least_one("model.blocks", blocks)
        _probability("model.dropout", dropout)
        _one_of("model.norm", norm, NORMS)
        _one_of("model.activation", activation, ACTIVATIONS)
        _one_of("model.init", init, INITS)
        inputs, height, width = shape
        most = min(height, width).bit_length() - 1
        if blocks > most:
            raise ValueError(
                f"model.blocks is {blocks}: expected at most {most}, since each halves the image of {height} × {width}"
            )
        layers: list[nn.Module] = []
        for block in range(blocks):
            kernels = channels * 2**block
            layers.append(nn.Conv2d(inputs, kernels, 3, padding=1, bias=norm == "none"))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(kernels))
            elif norm == "group":
                layers.append(nn.GroupNorm(math.gcd(8, kernels), kernels))
            # Pooled first: the same function for a monotone activation, on a quarter of the pixels.
            layers += [nn.MaxPool2d(2), ACTIVATIONS[activation]()]
            inputs = kernels
        features = inputs * (height >> blocks) * (width >> blocks)
        super().__init__(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, outputs))
        initialise(self, init)
        # An epoch of 3 200 images with 16 channels takes 0.33 s on one thread, with contiguous kernels 0.95 s.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Standardise(nn.Module):
    """Takes the mean from each feature, the last dimension of (batch, …, features), and divides by its deviation.

    Both are those of the training part, learnt before the first step, and part of the weights.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        std, mean = torch.std_mean(inputs.float().flatten(0, -2), 0, correction=0)
        self.mean, self.std = (
            mean,
            torch.where(std > 0, std, 1.0),
        )  # a feature that is always the same says nothing

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


class Restore(nn.Module):
    """The way back, for outputs (batch, outputs): to the mean and deviation of the numbers in the training part.

    So the loss and the metric are in the units of the data. Of classes, outputs stay as they are.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("std", torch.ones(outputs))

    def adapt(self, inputs: Tensor, targets: Tensor) -> None:
        if targets.is_floating_point():
            std, mean = torch.std_mean(targets, 0, correction=0)
            self.mean, self.std = mean, torch.where(std > 0, std, 1.0)

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs * self.std + self.mean


class Recurrent(nn.Module):
    """A recurrent network: (batch, steps, features), or an image row by row, to (batch, outputs), after its last step.

    cell: rnn (Elman's, with tanh), lstm or gru. hidden: units of a layer. dropout: after each layer but the last, and
    before the linear layer. standardise: as for the MLP, of each feature over all steps. Raises ValueError.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        cell: str = "gru",
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        _at_least_one("model.hidden", hidden)
        _at_least_one("model.layers", layers)
        _probability("model.dropout", dropout)
        _one_of("model.cell", cell, CELLS)
        _, features = steps_of(shape)
        between = (
            dropout if layers > 1 else 0.0
        )  # PyTorch warns of dropout between the layers where there is one
        self.before = Standardise(features) if standardise else nn.Identity()
        self.cells = CELLS[cell](features, hidden, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(hidden, outputs)
        self.after = Restore(outputs) if standardise else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        said, _ = self.cells(self.before(as_steps(inputs)))
        made: Tensor = self.after(self.last(self.dropout(said[:, -1])))
        return made


class Transformer(nn.Module):
    """A small encoder: (batch, steps, features), or an image row by row, to (batch, outputs), by the mean of its steps.

    Vaswani et al. 2017 (arXiv:1706.03762), with learnt positions, and norms before the layers as in Xiong et al. 2020
    (arXiv:2002.04745). width: of each step, a multiple of heads; inside a layer it is twice as much. Raises ValueError.
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
        for key, value in (("width", width), ("heads", heads), ("layers", layers)):
            _at_least_one(f"model.{key}", value)
        _probability("model.dropout", dropout)
        if width % heads:
            raise ValueError(
                f"model.width is {width}: expected a multiple of model.heads, which is {heads}"
            )
        steps, features = steps_of(shape)
        self.first = nn.Linear(features, width)
        self.places = nn.Parameter(0.02 * torch.randn(steps, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.last = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        made: Tensor = self.last(self.encoder(self.first(as_steps(inputs)) + self.places).mean(1))
        return made


def steps_of(shape: Sequence[int]) -> tuple[int, int]:
    """How many steps of how many features inputs of a shape are: (steps, features), or (channels, height, width)."""
    if len(shape) == 1:
        return shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3:
        return shape[1], shape[0] * shape[2]
    raise ValueError(
        f"inputs of {' × '.join(map(str, shape))} are no steps: expected (steps, features) or an image"
    )


def as_steps(inputs: Tensor) -> Tensor:
    """Inputs (batch, …) as (batch, steps, features); a step of an image is a row of all its channels."""
    if inputs.ndim == 2:
        return inputs[..., None]
    return inputs if inputs.ndim == 3 else inputs.transpose(1, 2).flatten(2)


def initialise(model: nn.Module, init: str) -> None:
    """Draws the weights of linear and convolutional layers; their biases become zero.

    xavier: uniform, Glorot and Bengio 2010. kaiming: normal over the fan-in, He et al. 2015 (arXiv:1502.01852).
    default: PyTorch's own, weights and biases uniform within ±1/√(fan-in).
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


def _one_of(key: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{key} is {value!r}: expected {', '.join(allowed)}{hint}")


def _at_least_one(key: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}: expected a whole number of at least 1")


def _probability(key: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{key} is {value!r}: expected a number from 0 up to, not including, 1")
