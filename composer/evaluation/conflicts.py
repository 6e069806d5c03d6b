"""What several LoRAs do to each other, before anything is painted: in their weights, and in what
they change of the bare model's predictions.

With dW_i the whole difference of LoRA i, U_i an orthonormal basis of what it gives (or reads) at a
site, r_i columns wide, and c_i = v_i - v_0 what it changes of the prediction v_0 of the bare model
with the prompt, at the steps of a picture that the bare model paints,

    cosine_ij   <dW_i, dW_j> / (||dW_i|| ||dW_j||)
    shared_ij   mean over sites of ||U_i^T U_j||^2 / min(r_i, r_j): 1 where one lies in the other
    alike_ij    sum over steps of <c_i, c_j> / (||c_i|| ||c_j||)
    places_ij   of the places where c_i is largest, a quarter of all, the part where c_j is, too

By chance the second is max(r_i, r_j) / d in d dimensions, and the last a quarter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.denoise import latent_shape, predict
from composer.diffusion.model import Model
from composer.diffusion.regions import REACHES
from composer.diffusion.sample import denoise_pictures
from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames
from composer.experts.health import SPIKE, Health, axes_of, block_of, health_of
from composer.fusions.merging import inner_products, part_of, total_strength
from composer.mixture import Mixture

STEPS = 6
"""Of the bare model's picture."""
STRONG = 0.25
"""Of all places: where a LoRA changes the prediction most."""
SHARED = 2 * STRONG
"""Of them: from here on two LoRAs are said to act in the same places, twice what chance gives."""


@dataclass(frozen=True, kw_only=True)
class OneLora:
    """What is known of one LoRA.

    part: the norm of its differences, as a part of that of the weights it changes; None without a
        model.
    ranks: the smallest and the largest.
    local: whether what it teaches has a place of its own in a picture, as a style has not.
    change: the size of what it changes of the prediction, as a part of it; None without a prompt.
    """

    name: str
    health: Health
    part: float | None
    ranks: tuple[int, int]
    sites: int
    local: bool
    change: float | None = None

    @property
    def words(self) -> str:
        """In one line."""
        low, high = self.ranks
        said = [
            f"norm {self.health.norm:.3g}"
            + ("" if self.part is None else f" ({self.part:.1%} of the weights it changes)"),
            f"rank {low}" if low == high else f"ranks {low} to {high}",
            _counted(self.sites, "site"),
            _counted(len(self.health.spikes), "spike"),
            "most in "
            + ", ".join(f"{b} ({p:.0%})" for b, p in list(self.health.energy.items())[:3]),
        ]
        if self.change is not None:
            said.append(f"changes the prediction by {self.change:.0%} of its size")
        return "; ".join(said)


@dataclass(frozen=True, kw_only=True)
class TwoLoras:
    """What is known of two.

    sites: that both change.
    blocks: the cosine of their differences in each block that both change.
    reads, gives: shared_ij of the inputs and of the outputs, and what it would be by chance; 0 of
        no site.
    alike, places: None without a prompt.
    """

    names: tuple[str, str]
    sites: int
    cosine: float
    blocks: Mapping[str, float]
    reads: tuple[float, float]
    gives: tuple[float, float]
    alike: float | None = None
    places: float | None = None

    @property
    def words(self) -> str:
        """In one line."""
        if not self.blocks:
            said = ["no site that both change"]
        else:
            unet = {b: c for b, c in self.blocks.items() if part_of(f"{b}.") == "unet"}
            by_block = (f"{block} {cosine:+.3f}" for block, cosine in (unet or self.blocks).items())
            said = [
                f"weights alike {self.cosine:+.3f} ({', '.join(by_block)})",
                f"shared inputs {_beside(*self.reads)}",
                f"shared outputs {_beside(*self.gives)}",
            ]
        if self.alike is not None and self.places is not None:
            said.append(f"changes alike {self.alike:+.2f}")
            said.append(f"in the same places {_beside(self.places, STRONG)}")
        return "; ".join(said)


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _beside(share: float, chance: float) -> str:
    return f"{share:.0%} (by chance {chance:.0%})"


@dataclass(frozen=True, kw_only=True)
class Conflicts:
    """What is known of all.

    strength: how many times as strong as the strongest alone they are when they are added up with
        their weights, in the U-Net.
    """

    loras: tuple[OneLora, ...]
    pairs: tuple[TwoLoras, ...]
    strength: float

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """The figures: what each is of, and what they are."""
        return (
            *((lora.name, lora.words) for lora in self.loras),
            *((" and ".join(pair.names), pair.words) for pair in self.pairs),
            *self._total(),
        )

    def _total(self) -> Iterator[tuple[str, str]]:
        if len(self.loras) > 1 and self.strength:
            yield "Added up", f"{self.strength:.2f} times as strong as the strongest alone"

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do about it, in plain words. Nothing is forbidden: these are figures of weights
        and predictions, and only pictures show what comes of them."""
        said: list[str] = []
        spikes = [
            f"{lora.name} at {len(lora.health.spikes)} of {_counted(lora.sites, 'site')}"
            for lora in self.loras
            if lora.health.spikes
        ]
        if spikes:
            said.append(
                f"Spikes, where over {SPIKE:.0%} of what a LoRA changes lies in one direction: "
                f"{', '.join(spikes)}. If such a LoRA spoils pictures beside others, composer "
                "inspect --cap writes a copy without."
            )
        if len(self.loras) > 1 and self.strength > 1:
            said.append(
                f"If pictures look overdone: added up, these LoRAs are {self.strength:.2f} times "
                "as strong as the strongest of them alone. Total strength brings them down to "
                f"it, as weights times {1 / self.strength:.2f} do."
            )
        local = {lora.name for lora in self.loras if lora.local}
        for pair in self.pairs:
            if pair.places is not None and pair.places >= SHARED and local >= {*pair.names}:
                said.append(
                    f"{' and '.join(pair.names)} change the same places: {pair.places:.0%} of "
                    f"those that each changes most, {STRONG:.0%} by chance. If they blend or one "
                    "is missing, Trigger regions or learned gates give each places of its own."
                )
        return tuple(said) or ("Nothing stands out: add them up.",)


def conflicts_of(
    experts: Sequence[Expert],
    weights: Mapping[str, float],
    modules: ModuleNames | None = None,
    seen: Tensor | None = None,
) -> Conflicts:
    """Measure some LoRAs; every site's singular values are worked out.

    weights: of each, for what they come to when added up.
    modules: of the model, for the norms of its weights.
    seen: (steps, 1 + LoRAs, channels, h, w), what `changes` gave.
    """
    blocks = inner_products(experts, block_of)
    unet = [rows for block, rows in blocks.items() if part_of(f"{block}.") == "unet"]
    whole = _summed(list(blocks.values()), len(experts))
    alike, places, sizes = (None, None, None) if seen is None else _seen(seen)
    return Conflicts(
        loras=tuple(
            OneLora(
                name=expert.name,
                health=health_of(expert.sites),
                part=_part(whole[n][n], expert, modules),
                ranks=(
                    min(factors.rank for factors in expert.sites.values()),
                    max(factors.rank for factors in expert.sites.values()),
                ),
                sites=len(expert.sites),
                local=expert.info.role in REACHES,
                change=None if sizes is None else float(sizes[n]),
            )
            for n, expert in enumerate(experts)
        ),
        pairs=tuple(
            TwoLoras(
                names=(experts[i].name, experts[j].name),
                sites=len(experts[i].sites.keys() & experts[j].sites.keys()),
                cosine=_cosine(whole, i, j),
                blocks={
                    block: _cosine(rows, i, j)
                    for block, rows in blocks.items()
                    if rows[i][i] and rows[j][j]
                },
                **_shared(experts[i], experts[j]),
                alike=None if alike is None else float(alike[i, j]),
                places=None if places is None else float(places[i, j]),
            )
            for i, j in combinations(range(len(experts)), 2)
        ),
        strength=total_strength(
            _summed(unet, len(experts)), [weights[expert.name] for expert in experts]
        ),
    )


def _summed(several: Sequence[Sequence[Sequence[float]]], count: int) -> list[list[float]]:
    numbers = range(count)
    return [[sum(rows[i][j] for rows in several) for j in numbers] for i in numbers]


def _cosine(products: Sequence[Sequence[float]], i: int, j: int) -> float:
    norms = (products[i][i] * products[j][j]) ** 0.5
    return products[i][j] / norms if norms else 0.0


def _part(energy: float, expert: Expert, modules: ModuleNames | None) -> float | None:
    """||dW|| / ||W||, over the sites that it changes; None where these are not at hand."""
    if modules is None:
        return None
    try:
        whole = sum(
            float(modules.weight(site).cpu().double().square().sum()) for site in expert.sites
        )
    except ComposerError:
        return None
    return (energy / whole) ** 0.5 if whole else None


def _shared(one: Expert, other: Expert) -> dict[str, tuple[float, float]]:
    """What two LoRAs read and give alike, and by chance: means over the sites that both change."""
    found: dict[str, list[tuple[float, float]]] = {"reads": [], "gives": []}
    for site in sorted(one.sites.keys() & other.sites.keys()):
        both = zip(axes_of(one.sites[site]), axes_of(other.sites[site]), strict=True)
        for some, (a, b) in zip(found.values(), both, strict=True):
            ranks = a.shape[1], b.shape[1]
            if min(ranks):
                some.append((float((a.T @ b).square().sum()) / min(ranks), max(ranks) / a.shape[0]))
    return {
        name: (
            sum(share for share, _ in some) / max(len(some), 1),
            sum(chance for _, chance in some) / max(len(some), 1),
        )
        for name, some in found.items()
    }


def _seen(seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alike_ij and places_ij, (LoRAs, LoRAs) each, and how large each change is beside v_0."""
    bare, changed = seen[:, 0].double(), seen[:, 1:].double()
    changed = changed - bare[:, None]
    flat = changed.transpose(0, 1).flatten(1)  # (LoRAs, all numbers)
    norms = flat.square().sum(1).sqrt()
    alike = (flat @ flat.T) / (norms[:, None] * norms).clamp_min(torch.finfo(flat.dtype).tiny)
    sizes = changed.square().sum(2).flatten(2)  # (steps, LoRAs, places)
    count = max(int(STRONG * sizes.shape[-1]), 1)
    strong = torch.zeros_like(sizes).scatter_(-1, sizes.topk(count).indices, 1.0)
    places = torch.einsum("sip,sjp->ij", strong, strong) / (len(seen) * count)
    return alike, places, norms / bare.square().sum().sqrt()


@torch.no_grad()
def changes(
    model: Model,
    mixture: Mixture,
    weights: Mapping[str, float],
    prompt: str,
    *,
    steps: int = STEPS,
    cfg_scale: float = 3.0,
    seed: int = 0,
) -> Iterator[Tensor]:
    """At each step of a picture that the bare model paints, what is predicted with the prompt by
    it and with each LoRA alone: (1 + LoRAs, channels, h, w), float32.

    weights: of each LoRA of the mixture, in the U-Net and in the text encoders. The mixture's own
        hold again afterwards.

    Raises:
        ComposerError: the prompt changes from step to step, or predictions are no numbers.
    """
    alone = torch.diag(torch.tensor([weights[name] for name in mixture.names]))
    rows = torch.cat([torch.zeros_like(alone[:1]), alone])
    with mixture.weighing_rows():
        texts: list[Any] = []
        for row in rows:
            mixture.weigh_rows(row[None])
            texts.append(encode_prompts(model, prompt, ""))
        guided = cfg_scale > 1 and not model.guides_itself
        mixture.weigh_rows(rows[:1])
        for step in denoise_pictures(
            model,
            texts[0].rows if guided else texts[0].positive,
            [seed],
            latent_shape(model),
            sampler="DDIM",
            steps=steps,
            cfg_scale=cfg_scale,
        ):
            predicted: list[Tensor] = []
            for row, text in zip(rows, texts, strict=True):
                mixture.weigh_rows(row[None])
                predicted.append(
                    predict(model, step.noisy, step.timestep, text.positive, cfg_scale)[0]
                )
            mixture.weigh_rows(rows[:1])
            found = torch.stack(predicted).cpu()
            if not bool(found.isfinite().all()):
                raise ComposerError(
                    "With one of these LoRAs the model predicts what is no number: leave out the "
                    "one that is broken, or lower its weight."
                )
            yield found
