"""What other programs call: A1111's routes, and the pictures that are made for callers."""

from __future__ import annotations

from composer.api.guard import Guard
from composer.api.routes import MOUNTED, sd_api
from composer.api.runs import Run, Runs, caller_of

__all__ = ["MOUNTED", "Guard", "Run", "Runs", "caller_of", "sd_api"]
