"""The winner made small, for those who deploy it: exported to ONNX, pruned, distilled, quantized.

`studyloom compress RUN_DIR`, and `compress=true` of a study, make several variants of the winner.
Each is judged by its value on a validation part, its bytes on disk and its measured latency. A rule
chooses one, and the test part is opened once for it and the original together. How it is done is
described in `compress.compression`; it is written below the run directory as winner.onnx and
compress.json.
"""

__all__ = ["compression", "settings"]
