"""What pip extras bring. The core imports none of it: a config or `plugins.py` names it."""
