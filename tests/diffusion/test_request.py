"""Requests are checked where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from composer.diffusion.request import Request
from composer.errors import ComposerError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "number of steps is 0: give a number from 1 to 500 .*20 to 50"),
        ({"steps": 10_000}, "number of steps is 10000: give a number from 1 to 500"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number"),
        ({"steps": True}, "steps is True"),
        ({"count": 65}, "pictures is 65: .* 1 to 64"),
        ({"cfg_scale": 0.5}, "CFG scale is 0.5: .* from 1"),
        ({"cfg_scale": float("nan")}, "CFG scale is nan"),
        ({"seed": -2}, "seed is -2: .*-1 draws one"),
        ({"seed": 2**64}, "seed is 18446744073709551616: "),
        ({"width": 0}, "width is 0"),
        ({"height": 10**6}, "height is 1000000"),
        ({"clip_skip": 0}, "Clip skip is 0"),
        ({"prompt": None}, "prompt is None: give text"),
        ({"sampler": "euler"}, "no sampler 'euler'. Did you mean 'Euler'"),
    ],
)
def test_bad_values_say_what_to_do(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        Request(**values)


def test_sizes_that_do_not_fit_name_the_nearest() -> None:
    with pytest.raises(ComposerError, match=r"height 65 .* multiple of 8 .* fits: 64 or 72"):
        Request(height=65).resolve(size=64, multiple=8)
    with pytest.raises(ComposerError, match=r"width 3 .* fits: 8"):
        Request(width=3).resolve(size=64, multiple=8)


def test_resolve_draws_the_seed_and_takes_the_models_size() -> None:
    resolved = Request(width=72).resolve(size=64, multiple=8)
    assert (resolved.width, resolved.height) == (72, 64)
    assert 0 <= resolved.seed < 2**32
    assert resolved.resolve(size=128, multiple=8) == resolved
    assert Request(seed=2**64 - 1, count=2).seed_of(1) == 0


def test_json_round_trip_and_unknown_names() -> None:
    request = Request(prompt="ein Fuchs, ü", seed=3, cfg_scale=2, width=64)
    assert Request.from_json(request.to_json()) == request
    with pytest.raises(ComposerError, match="Unknown settings of a request stepz: take them out"):
        Request.from_json({"stepz": 3})
