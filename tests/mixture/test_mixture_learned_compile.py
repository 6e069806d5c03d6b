"""Learned gates under torch.compile: one graph, and no switch compiles it again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gated_hosts import Host, gated, make_host, output
from torch import Tensor

from composer.mixture import GRANULARITIES, GateSettings, Mixture

SETTINGS: list[Any] = [
    GateSettings(time=True, bias=True, activation="free"),
    pytest.param(GateSettings(reduce="flatten"), marks=pytest.mark.slow),
    pytest.param(GateSettings(input="experts"), marks=pytest.mark.slow),
]


def name_of(settings: GateSettings) -> str:
    """A readable name of a case."""
    return f"{settings.input}-{settings.reduce}-{settings.activation}"


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def switch_about(host: Host, compiled: Any, twins: tuple[Mixture, ...]) -> None:
    """Switches of every kind: the compiled model does as the other, and is not compiled again."""
    base = output(make_host(host.kind))
    learned = output(host, compiled)
    assert_near(learned, output(host))
    assert not torch.allclose(learned, base, atol=1e-3)
    some = list(twins[0].units)[::2]
    limits: list[dict[str, Any]] = [{}, {"units": some}, {"depth": (0.0, 0.5)}]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for name, limit in zip(twins[0].names, limits, strict=True):
            for mixture in twins:
                mixture.toggle(name, False, **limit)
            found = output(host, compiled)
            assert_near(found, output(host))
            assert not torch.allclose(found, learned, atol=1e-3)
        for name in twins[0].names:
            for mixture in twins:
                mixture.toggle(name, False)
        assert_near(output(host, compiled), base)
        for name in twins[0].names:
            for mixture in twins:
                mixture.toggle(name, True)
        assert_near(output(host, compiled), learned)
        for mixture in twins:
            mixture.strengthen({twins[0].names[0]: 0.5})
        found = output(host, compiled)
        assert_near(found, output(host))
        assert not torch.allclose(found, learned, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_blocks_recompile_nothing(settings: GateSettings) -> None:
    """A transformer, a resnet and a sampler, each of them compiled with its gate."""
    host, mixture = gated("sd15", "block", settings)
    twin = copy.deepcopy(mixture)
    model: Any = twin.models["unet"]
    block = model.down_blocks[0]
    for region in (block.attentions[0], block.resnets[0], block.downsamplers[0]):
        region.compile(fullgraph=True, backend="eager")
    output(host, model)
    switch_about(host, model, (mixture, twin))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["layer", "matrix"])
def test_smaller_units_recompile_nothing(granularity: Any) -> None:
    host, mixture = gated("sd15", granularity)
    twin = copy.deepcopy(mixture)
    model: Any = twin.models["unet"]
    model.down_blocks[0].attentions[0].compile(fullgraph=True, backend="eager")
    output(host, model)
    switch_about(host, model, (mixture, twin))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("backend", "granularity"), [*(("eager", g) for g in GRANULARITIES), ("inductor", "block")]
)
def test_whole_unet_recompiles_nothing(backend: str, granularity: Any) -> None:
    host, mixture = gated("sd15", granularity, SETTINGS[0])
    twin = copy.deepcopy(mixture)
    compiled = torch.compile(twin.models["unet"], fullgraph=True, backend=backend)
    output(host, compiled)
    switch_about(host, compiled, (mixture, twin))
