"""Benches of studies that train: against the plain way, and their loaders."""
