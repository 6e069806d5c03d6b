"""The figures in the docs: `python -m benchmarks.ROOM.NAME` measures one subject anew."""
