"""`studyloom dashboard`: a study in the browser, while it runs and after.

Its own page comes first, and follows the study; optuna-dashboard is behind it. A guard lets nobody
else in.
"""

from studyloom.views.dashboard.serving import open_only_study, serve

__all__ = ["guard", "live_page", "notes", "open_only_study", "serve", "serving"]
