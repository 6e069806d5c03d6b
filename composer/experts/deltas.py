"""What each kind of adapter adds to one module's weight, as two factors.

Everything downstream (mixture, gates, export) knows `LowRank` alone. So each kind becomes a pair of
factors that multiply to exactly what the kind defines: the thinnest pair that its own factors give,
or the whole difference beside an identity where that is no thicker.

In the equations W is the model's weight (out, in · kh · kw), ⊗ Kronecker's product, ⊙ the product
entry by entry, and s = alpha / rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from composer.experts.formats import DORA
from composer.experts.low_rank import LowRank
from composer.experts.module_names import ModuleNames, Shape

Tensors = Mapping[str, Tensor]
"""The tensors of one module by slot, in float32."""

Scale = Callable[[int | None], float]
"""alpha / rank of a rank; of None the scale of an adapter that has none."""

_TINY = torch.finfo(torch.float32).eps
"""The least norm that DoRA divides by, as LyCORIS has it."""

_NEAR = 0.5
"""How much of a T-LoRA's P must lie in what it began as; random ones have rank / out of it."""


class WrongShape(ValueError):
    """An adapter whose difference has another shape than the module's weight."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(f"{shape} does not fit")
        self.shape = shape


@dataclass(frozen=True, kw_only=True)
class Site:
    """The module that an adapter changes; its weight is asked for only by kinds that turn it."""

    name: str
    modules: ModuleNames

    @property
    def shape(self) -> Shape:
        """Of the weight."""
        shape = self.modules.weight_shape(self.name)
        assert shape is not None  # only sites of the model are asked for
        return shape

    def weight(self) -> Tensor:
        """W (out, in · kh · kw) in float64: what is added is a small difference of it."""
        return self.modules.weight(self.name).flatten(1).cpu().double()

    def bias(self) -> Tensor | None:
        """The module's bias, likewise."""
        bias = self.modules.bias(self.name)
        return None if bias is None else bias.cpu().double()

    def check(self, out: int, *ins: int) -> None:
        """Refuse a difference of another size; flat ones and those with a kernel are alike."""
        if (out, prod(ins)) != (self.shape[0], prod(self.shape[1:])):
            raise WrongShape((out, *ins))

    def factors(self, up: Tensor, down: Tensor, scale: float) -> LowRank:
        """scale · up · down, of (out, rank) and (rank, in · kh · kw), in the weight's own form."""
        self.check(up.shape[0], *down.shape[1:])
        rank, ones = down.shape[0], (1 for _ in self.shape[2:])
        return LowRank(
            down=down.float().reshape(rank, *self.shape[1:]).contiguous(),
            up=up.float().reshape(up.shape[0], rank, *ones).contiguous(),
            scale=scale,
        )

    def dense(self, delta: Tensor, scale: float = 1.0) -> LowRank:
        """A whole difference (out, ...), exactly: it and an identity of its smaller side."""
        self.check(*delta.shape)
        return self.factors(*thin(delta.flatten(1)), scale)


def thin(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors (up, down) of a matrix, one of which is the identity of its smaller side."""
    rows, columns = matrix.shape
    if rows <= columns:
        return torch.eye(rows, dtype=matrix.dtype), matrix
    return matrix, torch.eye(columns, dtype=matrix.dtype)


def build(kind: str, tensors: Tensors, site: Site, scale: Scale, *, start: str = "") -> LowRank:
    """What an adapter of a kind adds at a site.

    start: how its factors began, where that took a part of the weight away.

    Raises:
        WrongShape: it is for a module of another shape.
        ValueError: a tensor is missing, or they do not fit each other; the message follows a file.
    """
    makers = {
        "LoRA": lora,
        "LoHa": loha,
        "LoKr": lokr,
        "GLoRA": glora,
        "T-LoRA": tlora,
        "(IA)³": ia3,
        "OFT": oft,
        "OFT of inputs": oft_of_inputs,
        "BOFT of inputs": boft_of_inputs,
        "full difference": full,
    }
    factors = makers[kind](tensors, site, scale)
    if start:
        factors = without_start(factors, start, site)
    for slot in DORA:
        if slot in tensors:
            factors = dora(factors, tensors[slot], site, slot)
    if "bias" in tensors:  # of `lora_B`, so it is scaled as the product is
        factors = with_bias(factors, tensors["bias"] * factors.scale, site)
    if "diff_b" in tensors:
        factors = with_bias(factors, tensors["diff_b"], site)
    return factors


def lora(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """ΔW = s · up · down. LoCon's and DyLoRA's files are the same.

    up (out, r), down (r, in[, kh, kw]). With Tucker's `lora_mid`, mid (r, r, kh, kw), it is
    ΔW[o, i, :] = s · Σ up[o, m] mid[m, n, :] down[n, i].
    """
    _need(t, "up", "down")
    up, down = t["up"], t["down"]
    shapes = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or any(n != 1 for n in up.shape[2:]):
        raise ValueError(f"has factors of no known shape: {shapes}")
    rank = down.shape[0]
    if not rank >= 1 or up.shape[1] != rank or not down.numel() or not up.numel():
        raise ValueError(f"has factors that do not fit each other: {shapes}")
    if "mid" in t:
        down = _tucker(t["mid"], down.flatten(1))
    factors = _as_host(LowRank(down=down, up=up, scale=scale(rank)), site.shape)
    if factors.weight_shape != site.shape:
        raise WrongShape(factors.weight_shape)
    return factors


def loha(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """ΔW = s · (w1_a w1_b) ⊙ (w2_a w2_b), of rank r1 · r2 (Hyeon-Woo et al. 2022, FedPara).

    w_a (out, r), w_b (r, in · kh · kw). up[o, (i, j)] = w1_a[o, i] w2_a[o, j], and down likewise.
    With Tucker's t (r, r, kh, kw), w_a is (r, out), and t and w_b together are what w_b is without.
    """
    _need(t, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    pairs: list[tuple[Tensor, Tensor]] = []
    for which in "12":
        up, down = t[f"hada_w{which}_a"].flatten(1), t[f"hada_w{which}_b"].flatten(1)
        if f"hada_t{which}" in t:
            up, down = up.T, _tucker(t[f"hada_t{which}"], down).flatten(1)
        _fit(up, down)
        site.check(up.shape[0], down.shape[1])
        pairs.append((up, down))
    (up1, down1), (up2, down2) = pairs
    out, width = up1.shape[0], down1.shape[1]
    s = scale(down1.shape[0])
    if down1.shape[0] * down2.shape[0] > min(out, width):
        return site.dense((up1 @ down1) * (up2 @ down2), s)
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
    return site.factors(up, down, s)


def lokr(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """ΔW = s · w1 ⊗ w2 with (u1 d1) ⊗ (u2 d2) = (u1 ⊗ u2)(d1 ⊗ d2) (Edalati et al. 2022, KronA).

    w1 (a, c), or w1_a (a, r) and w1_b (r, c); w2 (b, d[, kh, kw]), or w2_a (b, r) and w2_b
    (r, d · kh · kw), or with Tucker's t2 (r, r, kh, kw) w2_a (r, b) and w2_b (r, d). out = a · b,
    in = c · d. A whole w is its own factor beside an identity. Whole ones alone have no rank, and s
    is 1 whatever alpha is.
    """
    rank: int | None = None
    sides: list[tuple[Tensor, Tensor]] = []
    for which in ("lokr_w1", "lokr_w2"):
        if which in t:
            sides.append(thin(t[which].flatten(1)))
            continue
        _need(t, f"{which}_a", f"{which}_b")
        up, down = t[f"{which}_a"].flatten(1), t[f"{which}_b"].flatten(1)
        rank = down.shape[0]
        if which == "lokr_w2" and "lokr_t2" in t:
            up, down = up.T, _tucker(t["lokr_t2"], down).flatten(1)
        _fit(up, down)
        sides.append(thin(up @ down) if rank > min(up.shape[0], down.shape[1]) else (up, down))
    (up1, down1), (up2, down2) = sides
    site.check(up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1])
    return site.factors(_kron(up1, up2), _kron(down1, down2), scale(rank))


def glora(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """ΔW = s · (W a1 a2 + b1 b2) (Chavan et al. 2023), a1 and a2 on the input channels.

    a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in[, kh, kw]); with `bm` (r, r, kh, kw) b's are
    Tucker's. Old files have all four the other way round: W a2 a1 + b2 b1.
    """
    _need(t, "a1", "a2", "b1", "b2")
    a1, a2, b1, b2 = (t[slot].flatten(1) for slot in ("a1", "a2", "b1", "b2"))
    out, ins, *kernel = site.shape
    rank = a2.shape[0]
    new = a1.shape == (ins, rank) and a2.shape == (rank, ins) and b1.shape == (out, rank)
    if not new and a2.shape[0] == ins and b2.shape[0] == out:
        a1, a2, b1, b2 = a2, a1, b2, b1
        rank = a2.shape[0]
    if "bm" in t:
        b2 = _tucker(t["bm"], b2).flatten(1)
    for up, down in ((a1, a2), (b1, b2)):
        _fit(up, down)
    if a1.shape[0] != ins or a2.shape[1] != ins:
        raise WrongShape((out, a2.shape[1], *kernel))
    site.check(b1.shape[0], b2.shape[1])
    weight = site.weight().reshape(out, ins, -1)
    turned = torch.einsum("oik,ij->ojk", weight, a1.double()).float()  # (out, r, kh · kw)
    s = scale(rank)
    if not kernel:
        up, down = torch.cat((turned[..., 0], b1), dim=1), torch.cat((a2, b2))
        if up.shape[1] <= min(out, ins):
            return site.factors(up, down, s)
    whole = torch.einsum("ojk,ji->oik", turned, a2).flatten(1) + b1 @ b2
    return site.dense(whole, s)


def tlora(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """T-LoRA (Soboleva et al. 2025) with its whole rank: ΔW = s · (P λ Q - P₀ λ₀ Q₀).

    q (r, in), λ (1, r), p (out, r). They began as r singular vectors and values of W in a row: the
    largest, the least, or those in the middle. The file does not say which. It is seen from P, as
    that lies nearest to what it began as; of random beginnings it lies near none.
    """
    _need(t, "p_layer", "q_layer", "lambda_layer")
    if prod(site.shape[2:]) != 1:
        raise ValueError("is a T-LoRA of a convolution, for which its difference is not defined,")
    p, q, values = t["p_layer"].flatten(1), t["q_layer"].flatten(1), t["lambda_layer"].flatten()
    _fit(p, q)
    site.check(p.shape[0], q.shape[1])
    rank = q.shape[0]
    if values.shape[0] != rank or rank > min(p.shape[0], q.shape[1]):
        raise ValueError(f"has {values.shape[0]} values for rank {rank}")
    left, all_values, right = cast(
        "tuple[Tensor, ...]", cast(Any, torch.linalg).svd(site.weight(), full_matrices=False)
    )
    count = all_values.shape[0]
    starts = {0, count - rank, (count - rank) // 2}
    unit = p.double() / p.double().square().sum(0).sqrt().clamp_min(_TINY)
    near = {at: float((left[:, at : at + rank].T @ unit).square().sum()) / rank for at in starts}
    at = max(starts, key=lambda start: near[start])
    if near[at] < _NEAR:
        raise ValueError("is a T-LoRA that did not begin as a part of this model's weight,")
    these = slice(at, at + rank)
    up = torch.cat((p * values, -(left[:, these] * all_values[these]).float()), dim=1)
    down = torch.cat((q, right[these].float()))
    if 2 * rank > min(up.shape[0], down.shape[1]):
        return site.dense(up @ down, scale(rank))
    return site.factors(up, down, scale(rank))


def ia3(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """(IA)³ (Liu et al. 2022): rows or columns of W are scaled.

    LyCORIS' w with `on_input` 0 or 1: ΔW = diag(w) W, or W diag(w); w has as many entries as there
    are output or input channels. PEFT's l is a row (1, in) that scales the input by it, so that
    ΔW = W diag(l - 1), or a column (out, 1) that scales the output with the module's bias, so that
    ΔW = diag(l - 1) W.
    """
    out, ins, *_ = site.shape
    if "ia3_l" in t:
        given = t["ia3_l"]
        on_input = given.numel() != 1 and given.shape[0] == 1
        by = given.flatten().double() - 1
    else:
        _need(t, "weight", "on_input")
        on_input = bool(t["on_input"].flatten()[0])
        by = t["weight"].flatten().double()
    if by.shape[0] != (ins if on_input else out):
        raise WrongShape((out, by.shape[0]) if on_input else (by.shape[0], ins))
    weight = site.weight().reshape(out, ins, -1)
    delta = weight * (by[None, :, None] if on_input else by[:, None, None])
    factors = site.dense(delta.flatten(1))
    bias = None if on_input or "ia3_l" not in t else site.bias()
    return factors if bias is None else with_bias(factors, bias * by, site)


def oft(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """OFT (Qiu et al. 2023) and BOFT (Liu et al. 2024) of kohya and LyCORIS: rows of W are turned.

    With Q = B - Bᵀ, no longer than alpha · out if alpha is above 0, R = (I + Q)(I - Q)⁻¹ block by
    block: W' = Rᵀ W for `oft_blocks` (blocks, n, n). BOFT's (m, blocks, n, n) are m turns, each of
    rows that lie farther apart. `rescale` (out, 1, ...) then multiplies the rows. ΔW = W' - W.
    """
    _need(t, "oft_blocks")
    blocks = t["oft_blocks"].double()
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2] or not blocks.numel():
        raise ValueError(f"has blocks of no known shape: {tuple(blocks.shape)}")
    out, (count, size) = site.shape[0], blocks.shape[-3:-1]
    if count * size != out:
        raise WrongShape((count * size, *site.shape[1:]))
    skew = blocks - blocks.transpose(-1, -2)
    limit = float(t["alpha"].flatten()[0]) * out if "alpha" in t else 0.0
    norm = float(skew.square().sum().sqrt()) + 1e-8
    if 0 < limit < norm:
        skew = skew * (limit / norm)
    one = torch.eye(size, dtype=torch.float64)
    turns: Tensor = (one + skew) @ cast(Any, torch.linalg).inv(one - skew)
    weight = site.weight()
    if blocks.ndim == 3:
        turned = turns.transpose(-1, -2) @ weight.reshape(count, size, -1)
    else:
        turned = weight
        for stage, turn in enumerate(turns):
            turned = _butterfly(turn, turned, 2**stage * (size // 2))
    turned = turned.reshape(weight.shape)
    if "rescale" in t:
        turned = turned * t["rescale"].double().reshape(out, 1)
    return site.dense(turned - weight)


def oft_of_inputs(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """PEFT's OFT: ΔW = W Rᵀ - W, with R of blocks (n, n) along the input channels.

    `oft_R` (blocks, n (n - 1) / 2), or one row for all blocks, is what stands above the diagonal of
    the skew-symmetric Q, row by row. R = (I - Q)(I + Q)⁻¹, or with `terms` above 0 the beginning of
    the series of (I + Q)(I - Q)⁻¹ (Cayley-Neumann), see `_cayley`. No block of Q is longer than
    `eps` / √blocks (COFT).
    """
    if "terms" not in t or "eps" not in t:
        raise ValueError("is an OFT of PEFT's, and no adapter_config.json says how it turns,")
    if prod(site.shape[2:]) != 1:
        raise ValueError(
            "is an OFT of PEFT's for a convolution wider than 1×1, of which PEFT computes one "
            "thing in training and another when it merges,"
        )
    given, width = t["oft_R"].double(), prod(site.shape[1:])
    count, above = given.shape if given.ndim == 2 else (0, 0)
    size = (1 + math.isqrt(1 + 8 * above)) // 2
    if not count or not above or size * (size - 1) != 2 * above:
        raise ValueError(f"has blocks of no known shape: {tuple(given.shape)}")
    if width != count * size and (count > 1 or width % size):
        raise WrongShape((site.shape[0], count * size))
    skew = torch.zeros(count, size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns] = given
    skew = skew - skew.transpose(1, 2)
    longest = float(t["eps"]) / math.sqrt(count)
    norm = skew.square().sum(dim=(1, 2), keepdim=True).sqrt()
    skew = torch.where(norm <= longest, skew, skew * (longest / norm))
    turns = _cayley(skew, int(t["terms"]))
    weight = site.weight()
    blocks = weight.reshape(weight.shape[0], -1, size)
    turned = torch.einsum("obk,bjk->obj", blocks, turns.expand(blocks.shape[1], size, size))
    return site.dense(turned.reshape(weight.shape) - weight)


def boft_of_inputs(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """PEFT's BOFT: ΔW = diag(s) W (Rₘ … R₁)ᵀ - W, on the input channels and the kernel.

    `boft_R` (m, blocks, n, n): with Q = (B - Bᵀ) / 2 each stage turns by (I - Q)(I + Q)⁻¹ blocks of
    inputs that lie farther apart than those of the stage before, `boft_s` has the outputs' s.
    `boft_P` (m, inputs, inputs), which PEFT wrote once, repeats which inputs these are.
    """
    _need(t, "boft_R", "boft_s")
    given, s = t["boft_R"].double(), t["boft_s"].double().flatten()
    if given.ndim != 4 or given.shape[-1] != given.shape[-2] or not given.numel():
        raise ValueError(f"has blocks of no known shape: {tuple(given.shape)}")
    stages, count, size, _ = given.shape
    out, width = site.shape[0], prod(site.shape[1:])
    if count * size != width or s.shape[0] != out:
        raise WrongShape((s.shape[0], count * size))
    if stages > 1 and (size % 2 or count % 2 ** (stages - 1)):
        raise ValueError(f"has {count} blocks that no butterfly of BOFT has")
    turns = _cayley((given - given.transpose(-1, -2)) / 2, 0)
    weight = site.weight()
    turned = weight
    for stage, turn in enumerate(turns):
        order = torch.arange(width)
        if stage:  # of 2ˢ⁺¹ halves of blocks, those at even places come before those at odd ones
            halves = order.reshape(-1, 2**stage, 2, size // 2)
            order = halves.transpose(1, 2).flatten()
        if "boft_P" in t and not torch.equal(t["boft_P"][stage], torch.eye(width)[order]):
            raise ValueError("has another order of inputs than BOFT has (boft_P)")
        seen = torch.empty_like(turned)
        seen[:, order] = turned
        blocks = seen.reshape(out, count, size)
        turned = torch.einsum("obk,bjk->obj", blocks, turn).reshape(out, width)[:, order]
    return site.dense(s[:, None] * turned - weight)


def full(t: Tensors, site: Site, scale: Scale) -> LowRank:
    """ΔW is `diff` itself; `diff_b` is added to the bias, by `with_bias`. Either may be alone."""
    if "diff" in t:
        return site.dense(t["diff"])
    out, columns = site.shape[0], prod(site.shape[1:])
    return site.factors(torch.zeros(out, 1), torch.zeros(1, columns), 1.0)


def dora(factors: LowRank, magnitude: Tensor, site: Site, slot: str) -> LowRank:
    """DoRA (Liu et al. 2024): W' = m ⊙ (W + ΔW) / ‖W + ΔW‖, and what is added is W' - W.

    `dora_scale` (out, 1, ...) has norms over each output's row; (1, in, 1, ...) over each input's
    column, with the outputs and the kernel. PEFT's magnitude is always of the outputs, though of a
    convolution it is written (1, out, 1, 1).
    """
    out, ins, *_ = site.shape
    rows = slot == "magnitude" or magnitude.shape[0] == out
    if magnitude.numel() != (out if rows else ins):
        raise ValueError(
            f"has {magnitude.numel()} magnitudes for a weight of {out} outputs and {ins} inputs"
        )
    weight = site.weight()
    changed = (weight + factors.dense().flatten(1).double()).reshape(out, ins, -1)
    norm = changed.square().sum(dim=(1, 2) if rows else (0, 2), keepdim=True).sqrt()
    scaled = changed * (magnitude.double().reshape(norm.shape) / norm.clamp_min(_TINY))
    return site.dense(scaled.flatten(1) - weight)


def without_start(factors: LowRank, start: str, site: Site) -> LowRank:
    """PEFT's adapters that began as a part P of W are added to W - P: ΔW = s · up · down - P.

    PiSSA (Meng et al. 2024): P has W's r largest singular values; OLoRA (Büyükakyüz 2024): of
    W = QR, P = s · Q[:, :r] R[:r].
    """
    if len(site.shape) != 2:
        raise ValueError(f"began as {start!r} on a convolution, which PEFT does not define,")
    rank, weight = factors.rank, site.weight()
    linalg = cast(Any, torch.linalg)
    if start == "pissa":
        left, values, right = cast("tuple[Tensor, ...]", linalg.svd(weight, full_matrices=False))
        left = left[:, :rank] * values[:rank]
    else:
        left, right = cast("tuple[Tensor, ...]", linalg.qr(weight))
        left = left[:, :rank] * factors.scale
    up = torch.cat((factors.up * factors.scale, -left.float()), dim=1)
    down = torch.cat((factors.down, right[:rank].float()))
    if up.shape[1] > min(site.shape):
        return site.dense(up @ down)
    return site.factors(up, down, 1.0)


def with_bias(factors: LowRank, bias: Tensor, site: Site) -> LowRank:
    """The same factors with what is added to the site's bias; WrongShape for another's."""
    if bias.numel() != site.shape[0]:
        raise WrongShape((bias.numel(), *site.shape[1:]))
    return factors.with_bias(bias)


def _cayley(skew: Tensor, terms: int) -> Tensor:
    """(I - Q)(I + Q)⁻¹ of matrices (..., n, n), as PEFT has it.

    With `terms` above 0 it is the beginning of the series of (I + Q)(I - Q)⁻¹, up to the power
    p = max(3, terms - 1) if there are over two terms: I + 2 Q + ... + 2 Qᵖ⁻¹ + Qᵖ.
    """
    one = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
    if not terms:
        return cast(Tensor, cast(Any, torch.linalg).solve(one + skew, one - skew, left=False))
    turns = one + 2 * skew if terms > 1 else one
    last = max(3, terms - 1) if terms > 2 else 1
    power = skew
    for exponent in range(2, last + 1):
        power = power @ skew
        turns = turns + (power if exponent == last else 2 * power)
    return turns


def _butterfly(turn: Tensor, weight: Tensor, apart: int) -> Tensor:
    """One stage of BOFT: turn the blocks of rows that lie `apart` from each other.

    turn (blocks, n, n), weight (out, width).
    """
    if apart < 1 or weight.shape[0] % (2 * apart):
        raise ValueError(f"has {turn.shape[0]} blocks that no butterfly of BOFT has")
    size = turn.shape[-1]
    paired = weight.reshape(-1, 2, apart, weight.shape[1]).transpose(1, 2)
    turned = turn @ paired.reshape(-1, size, weight.shape[1])
    return turned.reshape(-1, apart, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _kron(one: Tensor, other: Tensor) -> Tensor:
    # torch.kron refuses some strides.
    product = one[:, None, :, None] * other[None, :, None, :]
    return product.flatten(2).flatten(0, 1)


def _tucker(mid: Tensor, down: Tensor) -> Tensor:
    """mid (m, n, kh, kw) and down (n, in) as one factor (m, in, kh, kw)."""
    if mid.ndim < 3 or mid.shape[1] != down.shape[0]:
        raise ValueError(f"has a middle factor {tuple(mid.shape)} beside {tuple(down.shape)}")
    return torch.einsum("mn...,ni->mi...", mid, down)


def _fit(up: Tensor, down: Tensor) -> None:
    if up.shape[1] != down.shape[0] or not up.numel() or not down.numel():
        raise ValueError(
            f"has factors that do not fit each other: {tuple(up.shape)} and {tuple(down.shape)}"
        )


def _need(t: Tensors, *slots: str) -> None:
    missing = [slot for slot in slots if slot not in t]
    if missing:
        word = "factor" if missing[0] in ("up", "down") else "tensor"
        raise ValueError(f"has no {missing[0]} {word}")


def _as_host(factors: LowRank, host: Shape) -> LowRank:
    """The factors with as many dimensions as the host's weight, where they mean the same.

    Models store the projections around their attention as Linear or as 1×1 convolution, and LoRAs
    for one fit the other.
    """
    down, up = factors.down, factors.up.flatten(1)
    if len(host) == 2 and all(n == 1 for n in down.shape[2:]):
        down = down.flatten(1)
    if len(host) == 4:
        down = down if down.ndim == 4 else down[:, :, None, None]
        up = up[:, :, None, None]
    return LowRank(down=down, up=up, scale=factors.scale)
