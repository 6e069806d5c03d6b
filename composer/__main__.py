"""`python -m composer`: the same as `composer`, for programs that start modules (accelerate)."""

from __future__ import annotations

from composer.cli import app

if __name__ == "__main__":
    app(prog_name="composer")
