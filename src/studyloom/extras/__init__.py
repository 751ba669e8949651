"""The parts that need pip extras: a config or `plugins.py` names them; the core imports none."""
