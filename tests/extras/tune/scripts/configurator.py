import sys
from ast import literal_eval

for argument in sys.argv[1:]:
    assert argument.startswith("--"), argument
    key, value = argument[2:].split("=")
    if key not in globals():
        raise ValueError(f"Unknown config key: {key}")
    globals()[key] = type(globals()[key])(literal_eval(value))
