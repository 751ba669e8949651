"""Benches of studies that train: against the plain way, their loaders, and their memory."""
