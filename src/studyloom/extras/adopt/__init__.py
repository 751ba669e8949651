"""Reads a study that another program has made, and says what its trials show: `studyloom adopt`."""

__all__ = [
    "csv_file",
    "findings",
    "mlflow_database",
    "pages",
    "reading",
    "tracked_runs",
    "wandb_folder",
]
