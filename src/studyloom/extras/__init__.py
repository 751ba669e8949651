"""Optional parts that a config or command names (`commands/plugins.py`); nothing imports them."""
