"""Merges of differences, each against PEFT, against a whole SVD, or against its definition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.experts import Expert
from composer.experts.info import LoraInfo
from composer.experts.low_rank import LowRank
from composer.fusions import merging

LINEAR, CONV, POINT = (10, 12), (6, 4, 3, 3), (10, 12, 1, 1)
Weighted = list[tuple[LowRank, float]]


def lora(shape: Sequence[int], rank: int, seed: int, *, bias: bool = False) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    out, into, *kernel = shape
    return LowRank(
        down=torch.randn(rank, into, *kernel, generator=generator),
        up=torch.randn(out, rank, *(1 for _ in kernel), generator=generator),
        scale=0.5 + seed / 7,
        offset=torch.randn(rank, generator=generator) if bias else None,
    )


def loras(shape: Sequence[int], *, bias: bool = False) -> Weighted:
    made = [lora(shape, rank, rank, bias=bias and rank != 3) for rank in (2, 3, 4)]
    return list(zip(made, (0.8, -0.5, 1.2), strict=True))


def whole(some: Weighted) -> tuple[list[Tensor], Tensor]:
    return [f.dense().flatten(1) for f, _ in some], torch.tensor([w for _, w in some])


def close(found: LowRank, wanted: Tensor, shape: Sequence[int]) -> None:
    assert found.weight_shape == tuple(shape)
    torch.testing.assert_close(found.dense(), wanted.reshape(*shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [LINEAR, CONV, POINT])
def test_the_sum_is_exact_and_thin(shape: Sequence[int]) -> None:
    some = loras(shape, bias=True)
    found = merging.added(some)
    deltas, weights = whole(some)
    assert found.rank == 9
    close(found, torch.einsum("n,noi->oi", weights, torch.stack(deltas)), shape)
    bias = merging.bias_of(some)
    assert bias is not None
    torch.testing.assert_close(found.bias(), bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "density"), list(product([LINEAR, CONV], [0.2, 0.5, 1.0])))
def test_ties_and_pruning_are_pefts(shape: Sequence[int], density: float) -> None:
    some = loras(shape)
    deltas, weights = whole(some)
    close(merging.ties(some, density), merge_utils.ties(deltas, weights, density), shape)
    pruned = merge_utils.magnitude_prune(deltas, weights, density)
    close(merging.pruned(some, density), pruned, shape)


def test_dare_keeps_by_chance_and_makes_up_for_it() -> None:
    some = loras(LINEAR)
    deltas, weights = whole(some)
    keep = merging.by_chance(some, 0.3, seed=4)
    assert keep.unique().tolist() == pytest.approx([0.0, 1 / 0.3])
    assert torch.equal(keep, merging.by_chance(some, 0.3, seed=4))
    assert not torch.equal(keep, merging.by_chance(some, 0.3, seed=5))
    shares = [float(merging.by_chance([some[0]] * 50, 0.3, seed).mean()) for seed in range(3)]
    assert shares == pytest.approx([1.0] * 3, abs=0.1)
    kept = torch.stack(deltas) * keep
    close(merging.pruned(some, 0.3, keep), torch.einsum("n,noi->oi", weights, kept), LINEAR)
    # what is left of DARE-TIES is TIES of numbers that are all kept
    wanted = merge_utils.ties(list(kept), weights, 1.0)
    close(merging.ties(some, 0.3, keep), wanted, LINEAR)


@pytest.mark.parametrize(("shape", "density"), list(product([LINEAR, CONV], [0.4, 1.0])))
def test_knots_is_ties_on_the_axes_of_a_whole_svd(shape: Sequence[int], density: float) -> None:
    some = loras(shape)
    deltas, weights = whole(some)
    u, values, axes = torch.linalg.svd(torch.cat(deltas, 1).double(), full_matrices=False)
    count = int((values > 1e-6 * values[0]).sum())
    parts = list(axes[:count].reshape(count, len(some), -1).transpose(0, 1).float())
    merged = merge_utils.ties(parts, weights, density).double()
    close(merging.knots(some, density), ((u * values)[:, :count] @ merged).float(), shape)


def test_what_is_projected_leaves_the_styles_inputs_alone() -> None:
    some = loras(CONV, bias=True)
    styles = [False, True, False]
    deltas, weights = whole(some)
    rows = torch.linalg.svd(deltas[1], full_matrices=False)[2][:3]
    for strength in (0.0, 0.5, 1.0):
        kept = torch.eye(36) - strength * rows.T @ rows
        wanted = weights[0] * deltas[0] @ kept + weights[1] * deltas[1]
        found = merging.projected(some, styles, strength)
        close(found, wanted + weights[2] * deltas[2] @ kept, CONV)
        torch.testing.assert_close(found.bias(), merging.added(some).bias(), rtol=1e-4, atol=1e-4)
    for nobody in ([False] * 3, [True] * 3):
        close(merging.projected(some, nobody, 1.0), merging.added(some).dense(), CONV)


@pytest.mark.parametrize(("shape", "alpha"), list(product([LINEAR, CONV], [0.0, 0.9, 1.0])))
def test_regmean_is_nearest_to_each_on_its_own_inputs(shape: Sequence[int], alpha: float) -> None:
    some = loras(shape, bias=True)
    deltas, weights = whole(some)
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(200, deltas[0].shape[1], generator=generator) for _ in some]
    found = merging.regmean(some, inputs, alpha)
    grams = [x.double().T @ x.double() / 200 for x in inputs]
    grams = [alpha * g + (1 - alpha) * torch.diag(g.diag()) for g in grams]
    mine = [w * d.double() for w, d in zip(weights, deltas, strict=True)]
    wanted = sum(m @ g for m, g in zip(mine, grams, strict=True)) @ torch.linalg.inv(sum(grams))
    close(found, wanted.float(), shape)
    assert found.rank == 9
    torch.testing.assert_close(found.bias(), merging.added(some).bias(), rtol=1e-4, atol=1e-4)
    if alpha == 1.0:  # no other matrix is nearer

        def loss(delta: Tensor) -> float:
            return sum(
                float((x @ (delta - m).T).square().sum())
                for x, m in zip(inputs, mine32, strict=True)
            )

        mine32, best = [m.float() for m in mine], found.dense().flatten(1)
        for seed in range(3):
            other = 1e-2 * torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
            assert loss(best) < loss(best + other)


def test_inputs_apart_keep_each_lora_whole() -> None:
    """LoRAs that see inputs of their own lose nothing: neither in RegMean nor in SSR-Merge."""
    some = [(lora(LINEAR, 2, seed), 1.0) for seed in (1, 2)]
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    codes = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(1))
    inputs = [codes[0] @ basis[:2], codes[1] @ basis[2:4]]

    def off(merged: LowRank) -> list[float]:
        """How far from each LoRA alone on its own inputs, as a part of what it does there."""
        alone = [x @ factors.dense().T for (factors, _), x in zip(some, inputs, strict=True)]
        found = [x @ merged.dense().T for x in inputs]
        return [float((a - b).norm() / a.norm()) for a, b in zip(alone, found, strict=True)]

    assert min(off(merging.added(some))) > 0.3
    assert max(off(merging.regmean(some, inputs, 1.0))) < 1e-2
    assert max(off(merging.ssr(some, inputs, 1e-7))) < 1e-2


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_ssr_is_its_formula(shape: Sequence[int]) -> None:
    some = loras(shape)
    generator = torch.Generator().manual_seed(3)
    width = some[0][0].down.flatten(1).shape[1]
    inputs = [torch.randn(150, width, generator=generator).double() for _ in some]
    stacked = torch.cat([f.down.flatten(1) for f, _ in some]).double()
    gram, own = torch.zeros(9, 9).double(), torch.zeros(9, 9).double()
    for x, ranks in zip(inputs, ((0, 2), (2, 5), (5, 9)), strict=True):
        keep = torch.zeros(9, 9).double()
        keep[range(*ranks), range(*ranks)] = 1
        z = (x @ stacked.T).T
        gram += z @ z.T / 150
        own += keep @ z @ z.T / 150
    router = own @ torch.linalg.inv(gram + 0.1 * gram.diag().mean() * torch.eye(9).double())
    ups = torch.cat([w * f.scale * f.up.flatten(1) for f, w in some], 1).double()
    close(merging.ssr(some, inputs, 0.1), (ups @ router @ stacked).float(), shape)


def zip_loss(deltas: Sequence[Tensor], inputs: Sequence[Tensor], m: Tensor, overlap: float) -> Any:
    """ZipLoRA's, of whole matrices."""
    total: Any = 0.0
    merged = sum(delta * column for delta, column in zip(deltas, m, strict=True))
    for delta, x in zip(deltas, inputs, strict=True):
        right = x @ delta.T
        total = total + (x @ merged.T - right).square().sum() / right.square().sum()
    for i in range(len(m)):
        for j in range(i):
            total = total + overlap * (m[i] * m[j]).abs().mean()
    return total


@pytest.mark.parametrize(("shape", "overlap"), [(LINEAR, 0.01), (CONV, 0.01), (LINEAR, 3.0)])
def test_ziplora_follows_the_gradient_of_its_loss(shape: Sequence[int], overlap: float) -> None:
    """By autograd and Adam, on whole matrices."""
    some = loras(shape, bias=True)
    deltas, weights = whole(some)
    mine = [float(w) * d.double() for w, d in zip(weights, deltas, strict=True)]
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(60, mine[0].shape[1], generator=generator).double() for _ in some]
    m = torch.ones(3, mine[0].shape[1], dtype=torch.float64, requires_grad=True)
    begun = float(zip_loss(mine, inputs, m, overlap).detach())
    optimizer = torch.optim.Adam([m], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        zip_loss(mine, inputs, m, overlap).backward()
        optimizer.step()
    found = merging.zipped(some, [x.float() for x in inputs], overlap)
    wanted = sum(delta * column for delta, column in zip(mine, m.detach(), strict=True))
    close(found, torch.as_tensor(wanted).float(), shape)
    assert float(zip_loss(mine, inputs, m, overlap).detach()) < 0.7 * begun
    assert found.rank == 9
    torch.testing.assert_close(found.bias(), merging.added(some).bias(), rtol=1e-4, atol=1e-4)


def test_pefts_linear_is_pefts() -> None:
    """By PEFT itself: two adapters on a layer, merged into a third."""
    layer: Any = nn.Sequential(nn.Linear(12, 10, bias=False))
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
    model: Any = get_peft_model(layer, config, adapter_name="a")
    model.add_adapter("b", config)
    some: Weighted = []
    for seed, (name, weight) in enumerate((("a", 0.7), ("b", 1.3))):
        made = lora(LINEAR, 3, seed)
        inner = model.base_model.model[0]
        inner.lora_A[name].weight.data, inner.lora_B[name].weight.data = made.down, made.up
        some.append((LowRank(down=made.down, up=made.up, scale=2.0), weight))
    model.base_model.add_weighted_adapter(["a", "b"], [0.7, 1.3], "c", combination_type="linear")
    inner = model.base_model.model[0]
    wanted = inner.scaling["c"] * inner.lora_B["c"].weight @ inner.lora_A["c"].weight
    close(merging.peft_linear(some), wanted.detach(), LINEAR)
    exact = merging.added(some).dense()
    assert float((wanted - exact).norm() / exact.norm()) > 0.5  # why it is under its own name
    with pytest.raises(ComposerError, match="2 and 3 and 4"):
        merging.peft_linear(loras(LINEAR))


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_the_nearest_of_a_rank_and_what_it_keeps(shape: Sequence[int]) -> None:
    full = merging.added(loras(shape, bias=True))
    u, values, v = torch.linalg.svd(full.dense().flatten(1), full_matrices=False)
    for rank in (1, 3, 5):
        found, kept, energy = merging.compressed(full, rank)
        close(found, (u[:, :rank] * values[:rank]) @ v[:rank], shape)
        assert kept == pytest.approx(float(values[:rank].square().sum()), rel=1e-4)
        assert energy == pytest.approx(float(values.square().sum()), rel=1e-4)
        torch.testing.assert_close(found.bias(), full.bias(), rtol=1e-4, atol=1e-4)
    assert merging.compressed(full, 100)[0] is full
    # a whole difference, which has no thin factors
    dense = merging.ties(loras(shape), 0.5)
    values = torch.linalg.svdvals(dense.dense().flatten(1))
    kept, energy = merging.compressed(dense, 2)[1:]
    assert kept / energy == pytest.approx(float(values[:2].square().sum() / values.square().sum()))


def expert(name: str, seed: int, sites: dict[str, Sequence[int]]) -> Expert:
    return Expert(
        name=name,
        path=Path(name),
        sites={site: lora(shape, 2 + seed, seed) for site, shape in sites.items()},
        info=LoraInfo(),
        unmatched=(),
        modules=len(sites),
        sha256="",
        tensor_hash="",
    )


PAIR = (
    expert("a", 0, {"unet.x": LINEAR, "unet.y": CONV, "text_encoder.z": LINEAR}),
    expert("b", 1, {"unet.y": CONV, "unet.w": LINEAR, "text_encoder_2.z": LINEAR}),
)


def test_norms_and_angles_are_those_of_the_whole_differences() -> None:
    found = merging.inner_products(PAIR)
    for part, row in found.items():
        for i, j in product(range(2), repeat=2):
            wanted = sum(
                float((PAIR[i].sites[site].dense() * PAIR[j].sites[site].dense()).sum())
                for site in PAIR[i].sites.keys() & PAIR[j].sites.keys()
                if site.startswith("unet.") == (part == "unet")
            )
            assert row[i][j] == pytest.approx(wanted, rel=1e-4)


def test_the_strongest_numbers_are_those_of_the_whole_differences() -> None:
    sums, gamma = merging.strongest_sums(PAIR, style=1)
    deltas = [one.sites["unet.y"].dense().abs().flatten() for one in PAIR]
    wanted = [float(delta.sort(descending=True)[0][: 2 * 3].sum()) for delta in deltas]
    assert sums == {"unet.y": pytest.approx(wanted)}
    assert gamma == pytest.approx(float(deltas[0].sum() / deltas[1].sum()))


def test_one_expert_of_several_adds_up_in_text_encoders() -> None:
    weights = [{"unet": 0.5, "text_encoder": 2.0}, {"unet": 1.5, "text_encoder": -1.0}]
    seen: list[tuple[str, list[int]]] = []

    def merge(site: str, some: merging.Weighted, here: Sequence[int]) -> LowRank:
        seen.append((site, list(here)))
        assert [weight for _, weight in some] == [weights[n]["unet"] for n in here]
        return merging.ties(some, 0.5)

    merged, kept = merging.merge_experts(PAIR, weights, merge, rank=0)
    assert seen == [("unet.x", [0]), ("unet.y", [0, 1]), ("unet.w", [1])] and kept == 1.0
    assert set(merged.sites) == PAIR[0].sites.keys() | PAIR[1].sites.keys()
    close(merged.sites["text_encoder.z"], 2.0 * PAIR[0].sites["text_encoder.z"].dense(), LINEAR)
    close(merged.sites["text_encoder_2.z"], -PAIR[1].sites["text_encoder_2.z"].dense(), LINEAR)
    thin, kept = merging.merge_experts(PAIR, weights, merge, rank=1)
    assert thin.sites["unet.y"].rank == 1 and 0 < kept < 1
    assert thin.sites["text_encoder.z"].rank == 2  # in the U-Net alone
