"""The winner compressed, for those who deploy it: exported to ONNX, pruned, distilled, quantized.

`studyloom compress RUN_DIR` makes several variants of the winner. Each is measured by its value on
a validation set, its bytes on disk and its latency. A rule chooses one, and the test set is used
once for it and the original together. How it is done is described in `export.compression`. The
result is written into the run directory, as winner.onnx and winner.onnx.json.
"""

__all__ = ["compression"]
