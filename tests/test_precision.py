"""bfloat16 is used where it is faster; elsewhere a person who asks for it is told, once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from composer import precision
from composer.diffusion.load import load_model
from composer.errors import ComposerError
from composer.precision import autocast, in_bfloat16, time_in_bfloat16


def processor(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """One that takes so many times as long in bfloat16."""
    monkeypatch.setattr(precision, "time_in_bfloat16", lambda: times)
    precision._warn.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_the_measurement_does_not_depend_on_where_it_is_asked() -> None:
    time_in_bfloat16.cache_clear()
    with torch.no_grad():
        assert time_in_bfloat16() > 0


@pytest.mark.parametrize(("times", "faster"), [(0.2, True), (30.0, False)])
def test_auto_is_bfloat16_where_it_is_faster(
    times: float, faster: bool, monkeypatch: pytest.MonkeyPatch, tiny_sd: Path
) -> None:
    processor(monkeypatch, times)
    assert in_bfloat16("auto", "cpu") == faster
    assert not in_bfloat16("float32", "cpu") and not in_bfloat16("auto", "mps")
    with autocast("auto", "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == faster
    loaded = load_model(tiny_sd, dtype="auto")
    assert (loaded.unet.dtype, loaded.vae.dtype) == (
        torch.bfloat16 if faster else torch.float32,
        torch.float32,
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: in_bfloat16("bfloat16", "cpu"),
        lambda folder: load_model(folder, dtype="bfloat16").unet.dtype == torch.bfloat16,
    ],
)
def test_who_asks_for_a_slow_bfloat16_gets_it_and_is_told_once(
    ask: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch, tiny_sd: Path
) -> None:
    processor(monkeypatch, 30.0)
    with pytest.warns(UserWarning, match="takes 30 times as long in bfloat16 as in float32: auto"):
        assert ask(tiny_sd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(tiny_sd)
        processor(monkeypatch, 0.2)
        assert ask(tiny_sd)


def test_names_of_types(tiny_sd: Path) -> None:
    assert load_model(tiny_sd, dtype="float16").unet.dtype == torch.float16
    assert load_model(tiny_sd, dtype="float32").unet.dtype == torch.float32
    with pytest.raises(ComposerError, match=r"no dtype 'int8'. Choose one of: auto, float32, flo"):
        load_model(tiny_sd, dtype="int8")
