"""The plots of the report, as plotly figures; where there is nothing to draw, a line that says why."""

__all__ = ["axes", "curves", "parameters", "pareto", "plot_study"]
