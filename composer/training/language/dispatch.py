"""Which batches share a forward pass, so that little of it is padding (m-LoRA, 2312.02515)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def least_padding(
    items: Sequence[Item], length: Callable[[Item], int], at_once: int
) -> list[list[Item]]:
    """The items in groups of at most `at_once`, those of like length together.

    Rows of a group are padded to its longest. As few groups as there can be; of all ways to part
    the items, ordered by length, into so many groups, the one with the least padding.
    """
    ordered = sorted(items, key=length)
    count, groups = len(ordered), -(-len(ordered) // at_once)
    lengths = [length(item) for item in ordered]
    # best[g][n]: the least cost of the first n items in g groups, and where the last one begins
    infinite = float("inf")
    best = [[(infinite, 0)] * (count + 1) for _ in range(groups + 1)]
    best[0][0] = (0.0, 0)
    for group in range(1, groups + 1):
        for end in range(1, count + 1):
            best[group][end] = min(
                (best[group - 1][begin][0] + (end - begin) * lengths[end - 1], begin)
                for begin in range(max(end - at_once, 0), end)
            )
    parts: list[list[Item]] = []
    end = count
    for group in range(groups, 0, -1):
        begin = best[group][end][1]
        parts.append(ordered[begin:end])
        end = begin
    return parts[::-1]
