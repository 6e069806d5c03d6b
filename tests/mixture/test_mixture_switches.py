"""Which experts are active where and when: switches by unit, depth and step; pins; records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_hosts import experts_at, gated, gates_for, make_host, output
from tiny_models import same_bits
from torch import nn
from work import work

from composer.errors import ComposerError
from composer.experts.low_rank import LowRank
from composer.mixture import GRANULARITIES, GateSettings, Mixture, Switch, attach

UNIT, OTHER = "unet.mid_block.attentions.0", "unet.mid_block.resnets.1"


def active(mixture: Mixture, unit: str = UNIT) -> list[bool]:
    return mixture.routings[unit].mask.tolist()


def off(mixture: Mixture, name: str) -> list[str]:
    """The units in which an expert is off."""
    index = mixture.names.index(name)
    return [unit for unit in mixture.units if not active(mixture, unit)[index]]


def test_a_switch_for_units_acts_there_alone() -> None:
    host, mixture = gated("sd15")
    before = output(host)
    mixture.toggle("ink", False, units=[UNIT])
    assert off(mixture, "ink") == [UNIT]
    assert mixture.switches == {"ada": True, "ink": True, "sea": True}
    output(host)
    weights = mixture.routings[UNIT].weights
    assert weights[:, 1].abs().max() == 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    assert (mixture.routings[OTHER].weights[:, 1] > 0).all()
    mixture.toggle("ink", True, units=[UNIT])
    assert same_bits(output(host), before)


def test_only_one_is_active_in_one_unit() -> None:
    _, mixture = gated("sd15")
    mixture.toggle("ada", False)
    mixture.toggle("ada", True, units=[UNIT, OTHER])
    assert set(mixture.units) - set(off(mixture, "ada")) == {UNIT, OTHER}
    mixture.toggle("ada", False, units=[OTHER])  # the later switch holds
    assert set(mixture.units) - set(off(mixture, "ada")) == {UNIT}


@pytest.mark.parametrize("fifth", range(5))
def test_a_switch_for_a_slice_of_depth(fifth: int) -> None:
    """The five slices of MoLE's table 5 together are the whole model, and no unit is in two."""
    _, mixture = gated("sd2")
    names = list(mixture.units)
    assert [mixture.depth_of(name) for name in names] == pytest.approx(
        [(i + 0.5) / len(names) for i in range(len(names))]
    )
    mixture.toggle("sea", False, depth=(fifth / 5, (fifth + 1) / 5))
    meant = off(mixture, "sea")
    low, high = fifth / 5, (fifth + 1) / 5
    assert meant == [n for i, n in enumerate(names) if low <= (i + 0.5) / len(names) < high]
    assert abs(len(meant) - len(names) / 5) < 1


def test_depth_is_that_of_each_part() -> None:
    unet, text = make_host("sd15"), make_host("clip")
    experts = {name: f | experts_at(text)[name] for name, f in experts_at(unet).items()}
    models = {"unet": unet.model, "text_encoder": text.model}
    mixture = attach(models, experts, granularity="block")
    assert mixture.depth_of("unet.down_blocks.0.resnets.0") < 0.1
    assert mixture.depth_of("text_encoder.encoder.layers.0") == pytest.approx(1 / 6)
    mixture.toggle("ada", False, depth=(0.0, 0.3))
    assert "text_encoder.encoder.layers.0" in off(mixture, "ada")
    assert "text_encoder.encoder.layers.1" not in off(mixture, "ada")


def test_a_switch_for_steps_follows_the_sampling() -> None:
    host, mixture = gated("sd15")
    everybody = output(host)
    mixture.toggle("ink", False)
    nobody_inks = output(host)
    mixture.toggle("ink", True)
    mixture.toggle("ink", False, steps=(0.4, 0.8))
    assert off(mixture, "ink") == []  # outside of any sampling
    for _ in range(2):  # and in the next picture again
        for step in range(10):
            mixture.at_step(step, 10)
            expected = nobody_inks if step in (4, 5, 6, 7) else everybody
            assert same_bits(output(host), expected), step
    mixture.at_step(5, 10)
    mixture.at_rest()  # a picture was left half-way
    assert off(mixture, "ink") == []


def test_constant_weights_follow_the_same_switches() -> None:
    host = make_host("sd15")
    mixture = attach({"unet": host.model}, experts_at(host), granularity="block")
    mixture.set_weights({"ada": 0.5, "ink": 0.25})
    mixture.toggle("ada", False, units=[UNIT], steps=(0.0, 0.5))
    for step, ada in ((0, 0.0), (1, 0.5)):
        mixture.at_step(step, 2)
        assert mixture.routings[UNIT].weights.tolist() == [ada, 0.25, 0.0]
        assert mixture.routings[OTHER].weights.tolist() == [0.5, 0.25, 0.0]
        assert active(mixture) == [ada > 0, True, False]


@pytest.mark.parametrize("on", [True, False])
def test_a_switch_without_limits_takes_back_the_limited(on: bool) -> None:
    _, mixture = gated("sd15")
    limits: list[dict[str, Any]] = [{"units": [UNIT]}, {"depth": (0.0, 0.5)}, {"steps": (0.0, 1.0)}]
    for limit in limits:
        mixture.toggle("ada", not on, **limit)
        mixture.toggle("ink", False, **limit)
    mixture.at_step(0, 4)
    assert off(mixture, "ink") == list(mixture.units)
    mixture.toggle("ada", on)
    assert off(mixture, "ada") == ([] if on else list(mixture.units))
    assert off(mixture, "ink") == list(mixture.units)  # those of others stay
    mixture.at_step(3, 4)
    assert off(mixture, "ada") == ([] if on else list(mixture.units))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_pin_holds_until_it_is_taken_out(granularity: Any) -> None:
    host, mixture = gated("sd15", granularity)
    unit = next(reversed(mixture.units))
    learned = output(host)
    mixture.pin(unit, {"ink": 1.5, "sea": -0.5})
    pinned = output(host)
    assert not torch.equal(pinned, learned)
    assert mixture.routings[unit].weights.tolist() == [0.0, 1.5, -0.5]
    mixture.set_gates(mixture.gates)
    assert same_bits(output(host), pinned)
    mixture.toggle("ink", False)  # a switch is above a pin
    assert mixture.routings[unit].weights.tolist() == [0.0, 0.0, -0.5]
    mixture.toggle("ink", True)
    mixture.pin(unit, None)
    assert same_bits(output(host), learned)
    mixture.pin(unit, None)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_strength_multiplies_what_is_said_of_one_expert(granularity: Any) -> None:
    host, mixture = gated("sd15", granularity)
    before = output(host)
    recorded = {name: routing.weights.clone() for name, routing in mixture.routings.items()}
    pinned = next(reversed(mixture.units))
    mixture.pin(pinned, {"ink": 1.5})
    mixture.strengthen({"ink": 2.0})
    assert mixture.strengths == {"ada": 1.0, "ink": 2.0, "sea": 1.0}
    stronger = output(host)
    first = next(iter(mixture.units))
    if first != pinned:  # what comes before it is the same, and so is what its gate sees
        times = torch.tensor([1.0, 2.0, 1.0])
        torch.testing.assert_close(mixture.routings[first].weights, recorded[first] * times)
    assert mixture.routings[pinned].weights.tolist() == [0.0, 1.5, 0.0]
    assert not torch.equal(stronger, before)
    mixture.pin(pinned, None)
    mixture.strengthen({})
    assert same_bits(output(host), before)
    with pytest.raises(ComposerError, match='no expert "nobody"'):
        mixture.strengthen({"nobody": 1.0})
    with pytest.raises(ComposerError, match="its strength is nan"):
        mixture.strengthen({"ada": float("nan")})


def test_a_strength_multiplies_constant_weights_too() -> None:
    one, other = make_host("sd15"), make_host("sd15")
    strong = attach({"unet": one.model}, experts_at(one))
    strong.set_weights({"ada": 0.5, "sea": 0.8})
    strong.strengthen({"ada": 3.0})
    attach({"unet": other.model}, experts_at(other)).set_weights({"ada": 1.5, "sea": 0.8})
    assert same_bits(output(one), output(other))


def test_weights_take_learned_gates_off() -> None:
    host, mixture = gated("sd15")
    mixture.set_weights({"ada": 0.7, "sea": 0.2})
    assert mixture.gates == {}
    alone = make_host("sd15")
    attach({"unet": alone.model}, experts_at(alone)).set_weights({"ada": 0.7, "sea": 0.2})
    torch.testing.assert_close(output(host), output(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("look", ["hidden", "experts"])
@pytest.mark.parametrize("granularity", ["block", "layer", "matrix"])
def test_each_unit_is_recorded_once_in_a_pass(granularity: Any, look: Any) -> None:
    host, mixture = gated("sd15", granularity, GateSettings(input=look))
    with mixture.record_weights() as recorded:
        output(host)
    assert [name for name, _ in recorded] == list(mixture.units)  # in their order
    for name, weights in recorded:
        assert torch.equal(weights, mixture.routings[name].weights)
    output(host)
    assert len(recorded) == len(mixture.units)
    pinned = next(iter(mixture.units))
    mixture.pin(pinned, {"ada": 1.0})
    with mixture.record_weights() as recorded:
        host.run()
        host.run()
    assert [name for name, _ in recorded] == [n for n in mixture.units if n != pinned] * 2
    assert all(weights.requires_grad for _, weights in recorded)


def test_weights_are_recorded_once_under_checkpointing_and_no_more_after_an_error() -> None:
    host, mixture = gated("sd15")
    host.model.enable_gradient_checkpointing()
    host.model.train()
    with mixture.record_weights() as recorded:
        result = host.run()
    result.square().mean().backward()
    assert [name for name, _ in recorded] == list(mixture.units)
    with pytest.raises(KeyError), mixture.record_weights() as recorded:
        raise KeyError
    output(host)
    assert recorded == []


def test_limits_that_are_none() -> None:
    for span in ((0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.0, 1.5), (float("nan"), 1.0)):
        with pytest.raises(ComposerError, match=r"depth of a switch .* from 0 to 1"):
            Switch(expert="ada", on=False, depth=span)
        with pytest.raises(ComposerError, match="steps of a switch"):
            Switch(expert="ada", on=False, steps=span)


def test_a_refused_switch_changes_nothing() -> None:
    host = make_host("sd15")
    mixture = attach({"unet": host.model}, experts_at(host), granularity="block")
    mixture.set_gates(gates_for(mixture, host.run))
    before = output(host)
    for name, limits in (
        ("bob", {}),
        ("ada", {"units": ["unet.nowhere"]}),
        ("ada", {"depth": (1.0, 0.0)}),
    ):
        with pytest.raises(ComposerError):
            mixture.toggle(name, False, **limits)  # pyright: ignore[reportArgumentType]
        assert same_bits(output(host), before)


def test_the_work_of_a_step_grows_with_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(units: int) -> int:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(units)))
        factors = LowRank(down=torch.ones(1, 4), up=torch.ones(4, 1), scale=1.0)
        experts = {name: {f"unet.{i}": factors for i in range(units)} for name in ("ada", "ink")}
        mixture = attach({"unet": model}, experts, granularity="matrix")
        mixture.toggle("ada", False, depth=(0.0, 0.5), steps=(0.0, 0.5))
        assert len(mixture.units) == units
        return work(lambda _: mixture.at_step(0, 4), "", monkeypatch)

    assert steps(80) / steps(40) < 2.3
