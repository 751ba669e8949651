"""Networks as ONNX: exported from PyTorch, quantized, and run by onnxruntime.

The extra `export` brings the libraries. They take seconds to import, so that each function imports
the ones that it needs.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from studyloom.extras.export.export_errors import CompressError
from studyloom.installation import pip_install

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "torch_pruning")
# The names of inputs and outputs in the file.
INPUTS = "inputs"
OUTPUTS = "outputs"
# How far outputs of the ONNX file may be from those of PyTorch, as a share of the largest output.
TOLERANCE = 1e-4
CALIBRATION_BATCH = 64  # training examples that set the ranges of int8 at once
MAX_CAUSE_LENGTH = 300  # characters of a library's error


def check_installed() -> None:
    """Raises CompressError if a package of the extra is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CompressError(f"compress needs {', '.join(missing)}; {pip_install('export')}")


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: it takes inputs as the file does, on the CPU.

    Args:
        content: the content of the file.
        threads: the threads of onnxruntime; 0 for one for each core.

    Raises:
        CompressError: onnxruntime does not load it, such as for an operator that it lacks.
    """

    def __init__(self, content: bytes, threads: int = 0) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # logs nothing but crashes: errors are raised
        providers = ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # its exceptions derive directly from Exception
            raise CompressError(
                f"onnxruntime does not load the network: {_format_cause(error)}"
            ) from None

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.run(inputs.numpy()))

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Returns the outputs for an array of inputs, as an array.

        Raises:
            CompressError: onnxruntime fails, such as for a size of the batch that it lacks.
        """
        try:
            outputs: NDArray[Any] = self.session.run(None, {INPUTS: inputs})[0]
        except Exception as error:  # its exceptions derive directly from Exception
            raise CompressError(
                f"onnxruntime cannot run the network: {_format_cause(error)}"
            ) from error
        return outputs

    def __deepcopy__(self, memo: Mapping[int, object]) -> "OnnxNetwork":
        return self  # it has no state


def export_network(network: nn.Module, inputs: Tensor, facts: Mapping[str, object]) -> bytes:
    """Exports a network to ONNX, for batches of any size.

    Args:
        network: on the CPU.
        inputs: at least two examples, in the type that the network takes.
        facts: what a user of the file must know about its inputs; stored in the file as JSON, in
            the property `studyloom`.

    Returns:
        The content of the file.

    Raises:
        CompressError: the network has no form in ONNX.
    """
    import onnx

    any_batch_size = {0: torch.export.Dim.DYNAMIC}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network.eval(),
                (inputs,),
                dynamo=True,
                dynamic_shapes=(any_batch_size,),
                input_names=[INPUTS],
                output_names=[OUTPUTS],
                verbose=False,
            )
    except Exception as error:  # any error of the user's network while it is traced
        name = type(network).__name__
        raise CompressError(
            f"{name} cannot be exported to ONNX: {_format_cause(error)}; ONNX has no form for an "
            "operator or a branch of it; write it with others, or deploy winner.pt"
        ) from error
    assert program is not None
    model = program.model_proto
    _remove_unneeded_parts(model)
    onnx.helper.set_model_props(model, {"studyloom": json.dumps(facts)})
    return bytes(model.SerializeToString())


def quantize(content: bytes, inputs: Tensor) -> bytes:
    """Quantizes a network to int8: weights per channel, activations by their range on examples.

    The ranges of activations are static, as pairs of nodes that quantize and dequantize (QDQ);
    ranges that are measured for each input make a CNN four times slower.

    Args:
        content: the content of an ONNX file.
        inputs: training examples that set the ranges, (n, …).

    Returns:
        The content of the quantized file.

    Raises:
        CompressError: it cannot be quantized.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization.quantize import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands the training examples to onnxruntime in batches."""

        def __init__(self) -> None:
            self.batches = iter(torch.split(inputs, CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            if batch is None:
                return None
            return {INPUTS: batch.numpy()}

    with tempfile.TemporaryDirectory(prefix="studyloom-") as folder, _quiet():
        exported = str(Path(folder) / "exported.onnx")
        prepared = str(Path(folder) / "prepared.onnx")
        quantized = str(Path(folder) / "int8.onnx")
        Path(exported).write_bytes(content)
        try:
            quant_pre_process(exported, prepared, skip_symbolic_shape=True)  # merges operators
            quantize_static(
                prepared,
                quantized,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(quantized)
        except Exception as error:  # from onnx, onnxruntime or NumPy
            raise CompressError(
                f"onnxruntime cannot quantize it: {_format_cause(error)}"
            ) from error
    _remove_unneeded_parts(model)
    properties = onnx.load_from_string(content).metadata_props
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in properties})
    return bytes(model.SerializeToString())


def check_equal(outputs_of_network: Tensor, outputs_of_file: Tensor) -> float:
    """Compares what PyTorch and the ONNX file return for the same inputs, both (n, …).

    Returns:
        The largest distance, as a share of PyTorch's largest output.

    Raises:
        CompressError: it is above TOLERANCE.
    """
    largest_output = float(outputs_of_network.abs().max())
    scale = max(largest_output, float(np.finfo(np.float32).tiny))  # never 0
    distance = float((outputs_of_network - outputs_of_file).abs().max()) / scale
    if not distance <= TOLERANCE:  # NaN is refused too
        raise CompressError(
            f"the ONNX file and PyTorch predict differently: outputs differ by {distance:.2g} of "
            f"the largest one; at most {TOLERANCE:g} is allowed"
        )
    return distance


def _remove_unneeded_parts(model: Any) -> None:
    """Removes what no runtime needs, for a smaller file.

    These are the shapes between nodes, unused functions, each node's line of code, and long names.
    """
    graph = model.graph
    del graph.value_info[:]
    del model.functions[:]  # the exporter has replaced each call of a function by its nodes
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    if not _has_subgraphs(graph):  # subgraphs would refer to the former names
        _shorten_names(graph)


def _has_subgraphs(graph: Any) -> bool:
    """Returns True if a node contains another graph, such as the branches of an `if`."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                return True
    return False


def _shorten_names(graph: Any) -> None:
    """Replaces the names in a graph by numbers; names take 1.6 of the 25.5 KB of a small file."""
    unchanged = {INPUTS, OUTPUTS, ""}
    short_names: dict[str, str] = {}

    def shorten_name(name: str) -> str:
        if name in unchanged:
            return name
        if name not in short_names:
            short_names[name] = str(len(short_names))
        return short_names[name]

    for tensor in graph.initializer:
        tensor.name = shorten_name(tensor.name)
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = map(shorten_name, node.input)
        node.output[:] = map(shorten_name, node.output)


def _format_cause(error: BaseException) -> str:
    """Formats the error that began a chain of errors, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason[:MAX_CAUSE_LENGTH]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the advice of the libraries, which is for their own developers."""
    previous_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous_level)
