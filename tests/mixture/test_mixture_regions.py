"""Maps of where experts act, against a slow oracle, and the gates that follow them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from gated_hosts import RANKS, UNETS, closeness, experts_at, make_host
from torch import Tensor
from torch.nn import functional

from composer.mixture import (
    Gate,
    GateSettings,
    LearnedGate,
    Reach,
    RegionGate,
    Seen,
    attach,
    region_maps,
)
from composer.mixture.learned import Activation
from composer.mixture.regions import CELLS

LOCAL, GLOBAL = Reach(local=True, emphasis=2.0), Reach(local=False)


def changes(experts: int, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(experts, batch, 4, height, width, generator=generator)


def naive(changes: Tensor, called: Tensor, reaches: list[Reach]) -> Tensor:
    """The definition, one picture, expert and cell at a time; no larger than CELLS a side."""
    experts, batch, _, height, width = changes.shape
    out = torch.zeros(batch, experts, height, width)
    for b in range(batch):
        power: list[Tensor] = []
        for i in range(experts):
            e = (changes[i, b] ** 2).mean(0)
            for _ in range(2):
                padded = functional.pad(e[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
                e = sum(
                    (2 - abs(y)) * (2 - abs(x)) / 16 * padded[1 + y :, 1 + x :][:height, :width]
                    for y in (-1, 0, 1)
                    for x in (-1, 0, 1)
                )
            power.append(cast(Tensor, e) / cast(Tensor, e).mean() * called[i, b])
        for i, reach in enumerate(reaches):
            if not reach.local:
                out[b, i] = reach.emphasis * called[i, b]
                continue
            for y in range(height):
                for x in range(width):
                    here = [float(power[j][y, x]) for j, r in enumerate(reaches) if r.local]
                    most = max(v * v for v in here)
                    e = float(power[i][y, x])
                    out[b, i, y, x] = reach.emphasis * e / (1 + e) * (e * e / most if most else 0)
    return out


def test_maps_are_their_definition() -> None:
    called = torch.tensor([[True, True], [True, False], [True, True], [False, True]])
    reaches = [LOCAL, replace(LOCAL, emphasis=1.5), GLOBAL, GLOBAL]
    seen = changes(4, 2, 6, 8)
    found = region_maps(seen, called, reaches)
    assert found.shape == (2, 4, 6, 8)
    torch.testing.assert_close(found, naive(seen, called, reaches), rtol=1e-4, atol=1e-5)


def test_whose_place_it_is() -> None:
    """Two rivals, each strong on its own half: each has its half, and little of the other's."""
    seen = torch.full((3, 1, 4, 8, 16), 0.05)
    seen[0, ..., :8], seen[1, ..., 8:] = 1.0, 1.0
    left, right, style = region_maps(
        seen, torch.ones(3, 1, dtype=torch.bool), [LOCAL] * 2 + [GLOBAL]
    )[0]
    assert left[:, :5].min() > 1 and left[:, 11:].max() < 0.02
    assert right[:, 11:].min() > 1 and right[:, :5].max() < 0.02
    assert bool((style == 1).all())


def test_a_prompt_that_does_not_name_an_expert_turns_it_off() -> None:
    called = torch.tensor([[True, False], [False, True], [True, False]])
    maps = region_maps(changes(3, 2, 8, 8), called, [LOCAL, LOCAL, GLOBAL])
    assert maps[0, 1].abs().max() == 0 and maps[1, 0].abs().max() == 0 and maps[1, 2].max() == 0
    alone = region_maps(
        changes(3, 2, 8, 8),
        called & torch.tensor([[True], [False], [True]]),
        [LOCAL, LOCAL, GLOBAL],
    )
    torch.testing.assert_close(alone[0], maps[0])
    assert bool(maps.isfinite().all())


def test_pictures_do_not_disturb_each_other_and_scale_does_not_matter() -> None:
    called = torch.ones(2, 3, dtype=torch.bool)
    seen = changes(2, 3, 8, 8)
    together = region_maps(seen, called, [LOCAL, LOCAL])
    one = region_maps(seen[:, 1:2], called[:, 1:2], [LOCAL, LOCAL])
    torch.testing.assert_close(together[1:2], one)
    torch.testing.assert_close(region_maps(7 * seen, called, [LOCAL, LOCAL]), together)


def test_one_expert_is_itself_and_large_pictures_are_seen_in_cells() -> None:
    assert (
        region_maps(changes(1, 2, 8, 8), torch.ones(1, 2, dtype=torch.bool), [LOCAL]).unique() == 1
    )
    maps = region_maps(changes(2, 1, 64, 96), torch.ones(2, 1, dtype=torch.bool), [LOCAL] * 2)
    assert maps.shape[-1] == CELLS and maps.shape[-2] == round(64 * CELLS / 96)


def weights_of(gate: Gate, maps: Tensor | None, grid: tuple[int, int], rows: int) -> Tensor:
    hidden = torch.zeros(rows, grid[0] * grid[1], 5)
    mask = torch.ones(gate.experts, dtype=torch.bool)
    return gate(Seen(hidden=hidden, grid=grid, regions=maps), mask)


def test_a_region_gate_gives_the_maps_at_its_units_size() -> None:
    gate = RegionGate([1.0, 1.0], [True, True])
    maps = torch.rand(2, 2, 8, 8)
    said = weights_of(gate, maps, (8, 8), 4)
    torch.testing.assert_close(said[:2], maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(said[:2], said[2:])  # the same without the prompt and with it
    small = weights_of(gate, maps, (4, 4), 2)
    torch.testing.assert_close(small, functional.avg_pool2d(maps, 2).flatten(2).transpose(1, 2))
    assert weights_of(gate, maps, (16, 16), 2).shape == (2, 256, 2)
    assert weights_of(gate, None, (4, 4), 2).unique() == 1
    twice = weights_of(RegionGate([2.0, -1.0], [True, True]), maps, (8, 8), 4)
    torch.testing.assert_close(twice, said * torch.tensor([2.0, -1.0]))


@pytest.mark.parametrize("kind", UNETS)
def test_experts_act_in_their_places(kind: str) -> None:
    """Maps of one and zero are switches; a map that is everywhere 1 is the weighted sum."""
    host = make_host(kind)
    one = dict.fromkeys(RANKS, 1.0)
    with (
        torch.no_grad(),
        attach({host.part: host.model}, experts_at(host), granularity="block") as mixture,
    ):
        rows, names = host.run().shape[0], mixture.names
        whole = host.run()
        mixture.set_weights(one | dict.fromkeys(names[1:], 0.0))
        alone = host.run()
        mixture.set_weights(one)
        mixture.set_gates(
            {
                name: RegionGate([1.0] * len(names), unit.present)
                for name, unit in mixture.units.items()
                if unit.module is not None
            }
        )
        assert mixture.needs_regions
        torch.testing.assert_close(host.run(), whole, rtol=1e-4, atol=1e-5)  # nobody has told it
        ones = torch.ones(rows, len(names), 4, 4)
        mixture.set_region_maps(ones)
        torch.testing.assert_close(host.run(), whole, rtol=1e-4, atol=1e-5)
        mixture.set_region_maps(torch.rand(rows, len(names), 4, 4))
        assert closeness(host.run(), whole) > 1e-3
        with mixture.without_gates():
            torch.testing.assert_close(host.run(), whole, rtol=1e-4, atol=1e-5)
        first = ones.clone()
        first[:, 1:] = 0
        mixture.set_region_maps(first)
        torch.testing.assert_close(host.run(), alone, rtol=1e-4, atol=1e-5)
        mixture.set_region_maps(torch.rand(rows, len(names), 4, 4))
        for name in names[1:]:
            mixture.toggle(name, False)  # who is left is itself
        torch.testing.assert_close(host.run(), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["free", "softmax"])
def test_a_placed_gate_is_the_gate_times_the_maps(activation: Activation) -> None:
    """Against the same gate without maps, times the maps; alone an expert is itself."""
    settings = GateSettings(input="placed", activation=activation, bias=True)
    gate, plain = (
        LearnedGate(each, 5, [True, True, True])
        for each in (settings, replace(settings, input="hidden"))
    )
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(torch.rand(parameter.shape))
    plain.load_state_dict(gate.state_dict())
    maps, hidden = torch.rand(2, 3, 8, 8), torch.randn(4, 16, 5)
    everyone = torch.ones(3, dtype=torch.bool)
    said = gate(Seen(hidden=hidden, grid=(4, 4), regions=maps), everyone)
    weights = plain(Seen(hidden=hidden, grid=(4, 4)), everyone)
    where = functional.avg_pool2d(maps, 2).flatten(2).transpose(1, 2).repeat(2, 1, 1)
    torch.testing.assert_close(said, where * weights[:, None])
    without = gate(Seen(hidden=hidden, grid=(4, 4)), everyone)
    torch.testing.assert_close(without, said / where)
    alone = gate(Seen(hidden=hidden, grid=(4, 4), regions=maps), torch.tensor([True, False, False]))
    torch.testing.assert_close(alone, torch.eye(3)[0].expand_as(alone))
