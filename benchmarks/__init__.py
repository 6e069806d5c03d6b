"""The figures in the docs: each module measures something anew, `python -m benchmarks.NAME`."""
