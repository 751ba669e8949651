"""Where a module was before: stored studies and people's configs name its old path.

From the first release on, a module that moves has a line here: its old path and its new one.
"""

MOVED: dict[str, str] = {}
