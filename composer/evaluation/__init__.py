"""Measuring: intervals of confidence, results with their origin, tables, contact sheets."""

from __future__ import annotations

from composer.evaluation.intervals import Interval, bootstrap_mean, share_columns, wilson
from composer.evaluation.results import Results, read_results, write_results
from composer.evaluation.sheets import Cell, contact_sheet
from composer.evaluation.tables import markdown_table

__all__ = [
    "Cell",
    "Interval",
    "Results",
    "bootstrap_mean",
    "contact_sheet",
    "markdown_table",
    "read_results",
    "share_columns",
    "wilson",
    "write_results",
]
