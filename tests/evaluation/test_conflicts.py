"""The conflict report against dense definitions in float64, on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_loras import write_lora
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.evaluation.conflicts import (
    Conflicts,
    OneLora,
    TwoLoras,
    changes,
    conflicts_of,
)
from composer.experts import Expert, LoraInfo, LowRank, ModuleNames, read_expert
from composer.experts.health import Health, axes_of
from composer.mixture import attach

LINEAR, CONV = (6, 5), (4, 3, 3, 3)
WEIGHTS = {"a": 0.5, "b": 2.0, "c": 1.0}


def factors(shape: tuple[int, ...], rank: int, generator: torch.Generator) -> LowRank:
    return LowRank(
        down=torch.randn(rank, *shape[1:], generator=generator),
        up=torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator),
        scale=0.7,
    )


def expert(name: str, sites: dict[str, LowRank], role: Any = "character") -> Expert:
    return Expert(
        name=name,
        path=Path(f"{name}.safetensors"),
        sites=sites,
        info=LoraInfo(role=role),
        unmatched=(),
        modules=len(sites),
        sha256="",
        tensor_hash="",
    )


@pytest.fixture
def three() -> list[Expert]:
    generator = torch.Generator().manual_seed(0)
    down, mid, text = "unet.down_blocks.0.x", "unet.mid_block.y", "text_encoder.layers.1.z"
    return [
        expert(
            name,
            {site: factors(shape, rank, generator) for site, shape, rank in sites},
        )
        for name, sites in (
            ("a", [(down, LINEAR, 2), (mid, CONV, 3), (text, LINEAR, 2)]),
            ("b", [(down, LINEAR, 1), (mid, CONV, 2), (text, LINEAR, 6)]),  # a whole difference
            ("c", [(mid, CONV, 1)]),
        )
    ]


def dense(one: Expert, site: str) -> np.ndarray[Any, Any]:
    """ΔW, a matrix; nothing where the LoRA leaves the site alone."""
    low = one.sites[site]
    up = low.up.flatten(1).double().numpy()
    return low.scale * up @ low.down.flatten(1).double().numpy()


def test_the_figures_of_weights_are_those_of_whole_matrices(three: list[Expert]) -> None:
    found = conflicts_of(three, WEIGHTS)
    for lora, one in zip(found.loras, three, strict=True):
        norm = np.sqrt(sum((dense(one, site) ** 2).sum() for site in one.sites))
        assert lora.health.norm == pytest.approx(norm) and lora.part is None
        assert (lora.sites, lora.change) == (len(one.sites), None)
    assert [lora.ranks for lora in found.loras] == [(2, 3), (1, 6), (1, 1)]
    for pair, (one, other) in zip(found.pairs, combinations(three, 2), strict=True):
        shared = [site for site in one.sites if site in other.sites]
        assert pair.names == (one.name, other.name) and pair.sites == len(shared)
        inner = {site: (dense(one, site) * dense(other, site)).sum() for site in shared}
        norms = [
            np.sqrt(sum((dense(lora, site) ** 2).sum() for site in lora.sites))
            for lora in (one, other)
        ]
        assert pair.cosine == pytest.approx(sum(inner.values()) / np.prod(norms))
        mid = "unet.mid_block.y"
        alone = [np.linalg.norm(dense(lora, mid)) for lora in (one, other)]
        assert pair.blocks["unet.mid_block"] == pytest.approx(inner[mid] / np.prod(alone))
        assert set(pair.blocks) == {site.rpartition(".")[0] for site in shared}
        reads, gives, chance = [], [], []
        for site in shared:
            (u, s, v), (p, t, q) = (np.linalg.svd(dense(lora, site)) for lora in (one, other))
            m, n = (int((values > 1e-6).sum()) for values in (s, t))
            gives.append(((u[:, :m].T @ p[:, :n]) ** 2).sum() / min(m, n))
            reads.append(((v[:m] @ q[:n].T) ** 2).sum() / min(m, n))
            chance.append((max(m, n) / len(v), max(m, n) / len(u)))
        assert pair.reads == pytest.approx((np.mean(reads), np.mean([c[0] for c in chance])))
        assert pair.gives == pytest.approx((np.mean(gives), np.mean([c[1] for c in chance])))
        assert (pair.alike, pair.places) == (None, None)
    cosines = [f"{block} {c:+.3f}" for block, c in found.pairs[0].blocks.items() if "unet" in block]
    assert len(cosines) == 2 and f"({', '.join(cosines)}); shared" in found.pairs[0].words
    unet = ("unet.down_blocks.0.x", "unet.mid_block.y")
    weighed = [
        {site: WEIGHTS[one.name] * dense(one, site) for site in unet if site in one.sites}
        for one in three
    ]
    sizes = [np.sqrt(sum((delta**2).sum() for delta in some.values())) for some in weighed]
    whole = sum((sum(some[site] for some in weighed if site in some) ** 2).sum() for site in unet)
    assert found.strength == pytest.approx(np.sqrt(whole) / max(sizes))


def test_a_lora_lies_within_itself_and_beside_none(three: list[Expert]) -> None:
    whole = three[0]
    apart = expert("d", {"unet.elsewhere": factors(LINEAR, 1, torch.Generator().manual_seed(1))})
    copy = expert("copy", dict(whole.sites))
    found = conflicts_of([whole, copy, apart], {"a": 1.0, "copy": 1.0, "d": 0.0})
    same, *others = found.pairs
    assert (same.cosine, same.reads[0], same.gives[0]) == pytest.approx((1, 1, 1))
    assert found.strength == pytest.approx(2)
    still = LowRank(down=torch.zeros(1, 5), up=torch.ones(6, 1), scale=1.0)
    zero = expert("zero", {"unet.down_blocks.0.x": still})
    nothing = conflicts_of([whole, zero], {"a": 1.0, "zero": 1.0})
    assert nothing.pairs[0].words == "no site that both change" and nothing.strength == 1
    for pair in others:
        assert (pair.sites, pair.cosine, pair.reads, dict(pair.blocks)) == (0, 0, (0, 0), {})
        assert pair.words == "no site that both change"


def test_axes_leave_out_ranks_that_change_nothing() -> None:
    low = factors(CONV, 3, torch.Generator().manual_seed(0)).with_bias(torch.ones(4))
    assert low.rank == 4
    reads, gives = axes_of(low)
    assert reads.shape == (27, 3) and gives.shape == (4, 3)
    nothing = LowRank(down=torch.zeros(2, 5), up=torch.ones(6, 2), scale=1.0)
    assert [some.shape[1] for some in axes_of(nothing)] == [0, 0]


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_lora(tmp_path / f"{name}.safetensors", seed=n) for n, name in enumerate("ab")]


def test_changes_are_those_of_each_lora_alone(model: Model, paths: list[Path]) -> None:
    """At the steps of the bare model's picture, each with its own text encoder."""
    modules = ModuleNames.of(model.models, model=model.name)
    experts = [read_expert(path, modules) for path in paths]
    sites = {one.name: one.sites for one in experts}
    weights = {"a": 0.5, "b": -1.0}
    with attach(model.models, sites) as mixture:
        seen = torch.stack(list(changes(model, mixture, weights, "a fox", steps=3)))
        mixture.set_weights({})
        bare = torch.stack(list(changes(model, mixture, weights, "a fox", steps=3)))
        assert torch.equal(bare, seen)  # what the mixture's own weights are does not matter
    assert seen.shape == (3, 3, 4, 8, 8)
    for name, row in (("a", 1), ("b", 2)):
        with attach(model.models, {name: sites[name]}) as mixture:
            alone = torch.stack(list(changes(model, mixture, weights, "a fox", steps=3)))
        torch.testing.assert_close(alone, seen[:, [0, row]], rtol=1e-4, atol=1e-5)
    found = conflicts_of(experts, weights, modules, seen)
    v = seen.double().numpy()
    c = [v[:, 1] - v[:, 0], v[:, 2] - v[:, 0]]
    for lora, one, change in zip(found.loras, experts, c, strict=True):
        assert lora.change == pytest.approx(np.linalg.norm(change) / np.linalg.norm(v[:, 0]))
        base = sum(float(modules.weight(site).double().square().sum()) for site in one.sites)
        assert lora.part == pytest.approx(lora.health.norm / base**0.5)
    (pair,) = found.pairs
    norms = np.linalg.norm(c[0]) * np.linalg.norm(c[1])
    assert pair.alike == pytest.approx((c[0] * c[1]).sum() / norms)
    shares: list[float] = []
    for step in range(3):
        most = [set(np.argsort((change[step] ** 2).sum(0).ravel())[-16:].tolist()) for change in c]
        shares.append(len(most[0] & most[1]) / 16)
    assert pair.places == pytest.approx(np.mean(shares))


def made(places: float, *, local: tuple[bool, bool] = (True, True)) -> Conflicts:
    health = Health(norm=1.0, energy={"unet": 1.0}, largest=(1.0, "x"), spike=0.5, spikes=())
    one, two = (
        OneLora(name=n, health=health, part=None, ranks=(4, 4), sites=2, local=here, change=0.1)
        for n, here in zip("ab", local, strict=True)
    )
    pair = TwoLoras(
        names=("a", "b"), sites=0, cosine=0, blocks={}, reads=(0, 0), gives=(0, 0),
        alike=0.1, places=places,
    )  # fmt: skip
    return Conflicts(loras=(one, two), pairs=(pair,), strength=0.9)


def test_advice_follows_the_figures(three: list[Expert]) -> None:
    assert made(0.4).advice == ("Nothing stands out: add them up.",)
    assert made(0.9, local=(True, False)).advice == made(0.4).advice  # a style acts everywhere
    (places,) = made(0.6).advice
    assert "a and b change the same places: 60% of those" in places
    spiky = LowRank(
        down=torch.tensor([[100.0, 0, 0], [0, 1, 0]]), up=torch.eye(3)[:, :2], scale=1.0
    )
    (spike, strength) = conflicts_of(
        [three[0], expert("s", {"unet.x": spiky})], {"a": 1.0, "s": 0.01}
    ).advice
    assert "over 90% of" in spike and "s at 1 of 1 site. " in spike and "--cap" in spike
    assert "Total strength" in strength


@pytest.fixture
def said(paths: list[Path], tiny_sd: Path) -> Iterator[Any]:
    def run(*more: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["inspect", *map(str, paths), *more])
        assert done.exit_code == code, done.output
        return done.output

    yield run


def test_inspect_of_several_files(said: Any, tiny_sd: Path, tmp_path: Path) -> None:
    plain = said()
    for begun in ("a: norm ", "b: norm ", "a and b: weights alike ", "Added up: "):
        assert sum(line.startswith(begun) for line in plain.splitlines()) == 1
    assert "changes alike" not in plain
    told = json.loads(said("--model", str(tiny_sd), "--prompt", "a fox", "--json"))
    assert [one["file"][-13:] for one in told["files"]] == ["a.safetensors", "b.safetensors"]
    assert 0 <= told["pairs"][0]["places"] <= 1 and told["loras"][0]["part"] > 0
    assert any("Total strength" in line for line in told["advice"])
    assert "give --model" in said("--prompt", "a fox", code=2)
    assert "give it alone" in said("--model", str(tiny_sd), "--cap", str(tmp_path / "c"), code=2)
