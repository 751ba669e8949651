"""Former paths of modules, which stored studies and configs may name.

From the first release on, a module that moves has a line here: its old path and its new one.
"""

MOVED: dict[str, str] = {}
