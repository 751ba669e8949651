"""Data: examples as tensors or Datasets, where they come from, and how they are divided.

Training and test set are loaded by separate calls, so that a search cannot read the test set by
accident. A source says in its `transform` how what a file holds becomes an input, for `predict`.
The classes imported here are those that configs name: `_target_: studyloom.data.Loaded`.
"""

from studyloom.data.data_source import DataSource
from studyloom.data.datasets import Datasets
from studyloom.data.sound import Sound
from studyloom.data.sources import Embedded, Idx, Loaded, Series, Table, read_arrays
from studyloom.data.split import Split, Tokens
from studyloom.data.transform import Image, Reader
from studyloom.files import asset

__all__ = [
    "DataSource",
    "Datasets",
    "Embedded",
    "Idx",
    "Image",
    "Loaded",
    "Reader",
    "Series",
    "Sound",
    "Split",
    "Table",
    "Tokens",
    "asset",
    "data_source",
    "datasets",
    "examples",
    "read_arrays",
    "sound",
    "sources",
    "split",
    "training_data",
    "transform",
]
