"""Searches for the arguments of a training script from one command line: `studyloom tune`.

`command_line.py` turns the words of the command line into a `Search`, with the defaults that
`declared_arguments.py` reads in the script. `sweep_file.py` does the same for a W&B sweep file, and
`sweep_run.py` gives its script what only a file can have. `search.py` turns a `Search` into the
config of an ordinary study, whose objective is `studyloom.extras.integrations.Script`.
"""
