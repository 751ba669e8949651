"""Laws of networks that ONNX or onnxruntime refuses; exports are tested in `chaos/`."""

import re

import pytest
import torch

from studyloom.extras.export import onnx
from studyloom.extras.export.export_errors import CompressError
from studyloom.extras.export.onnx import OnnxNetwork, check_equal, check_installed
from studyloom.installation import pip_install


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx_of_nobody",))
    with pytest.raises(
        CompressError, match=re.escape(f"needs onnx_of_nobody; {pip_install('export')}")
    ):
        check_installed()


def file_of(operator, *shape):
    """Returns a file with one operator, and inputs of a shape."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    inputs, outputs = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("inputs", "outputs")
    )
    node = helper.make_node(operator, ["inputs"], ["outputs"])
    graph = helper.make_graph([node], "g", [inputs], [outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def test_an_operator_that_does_not_exist_is_named():
    content = file_of("OfNobody", "n", 2)
    with pytest.raises(CompressError, match=r"onnxruntime does not load .*OfNobody"):
        OnnxNetwork(content)


def test_an_operator_unknown_to_onnxruntime_is_an_error_of_one_variant():
    """Its own exceptions derive from Exception, and would end all the other variants."""
    network = OnnxNetwork(file_of("Relu", 1, 2))
    assert network(torch.ones(1, 2)).tolist() == [[1, 1]]
    with pytest.raises(CompressError, match=r"onnxruntime cannot run the network: Invalid"):
        network(torch.ones(3, 2))


def test_outputs_are_equal_up_to_the_stated_share_of_the_largest():
    outputs = torch.tensor([[100.0, 0.0]])
    assert check_equal(outputs, outputs + 0.005) == pytest.approx(5e-5, rel=0.01)
    for outputs_of_file in (outputs + 0.02, outputs * torch.nan):
        with pytest.raises(CompressError, match="and PyTorch predict differently"):
            check_equal(outputs, outputs_of_file)
