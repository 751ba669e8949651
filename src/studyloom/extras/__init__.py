"""Optional parts that a command or config reaches by name (`plugins.py`); nothing imports them."""
