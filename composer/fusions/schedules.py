"""Sums whose weights change from step to step, in one pass of the U-Net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from composer.fusions.merges import Whole
from composer.fusions.recipe import Plan
from composer.settings import setting

if TYPE_CHECKING:
    from composer.experts import Expert
    from composer.fusions.recipe import Bench
    from composer.mixture import Granularity, Schedule

ROLES = ("character", "clothing", "style", "background", "object")
"""In which order LoRAs take turns, as in ComposLoRA's code."""


@dataclass(frozen=True, kw_only=True)
class Scheduled(Whole):
    """A weighted sum times what a schedule gives at each step."""

    def schedule(self, experts: Mapping[str, Expert]) -> Schedule:
        """By the order of the experts."""
        raise NotImplementedError

    def attach(self, plan: Plan, bench: Bench) -> dict[str, Expert]:
        """As the sum, with the schedule."""
        found = super().attach(plan, bench)
        mixture = bench.attach(self.granularity(plan), {n: found[n] for n in sorted(found)})
        if mixture is not None:
            key = (self, *(found[name] for name in mixture.names))
            mixture.follow(
                bench.derive(key, lambda: self.schedule({n: found[n] for n in mixture.names}))
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Switch(Scheduled):
    """LoRA Switch (arXiv 2402.16843): at step t LoRA i = floor((t mod k tau) / tau), t from 0."""

    kind = "switch"
    title = "LoRA Switch"
    description = "The LoRAs take turns: one at a time is on, for a few steps."
    brief = "one after the other"
    paper = "https://arxiv.org/abs/2402.16843"

    turn: int = setting(5, at_least=1, at_most=1000, label="Turn", help="Steps of one turn.")

    def schedule(self, experts: Mapping[str, Expert]) -> Schedule:
        """Characters first, then by the order of `ROLES`."""
        order = in_turn([expert.info.role for expert in experts.values()])

        def switched(unit: str, index: int, total: int) -> list[float]:
            now = order[index // self.turn % len(order)]
            return [float(number == now) for number in range(len(order))]

        return switched


def in_turn(roles: list[str]) -> list[int]:
    """The numbers of LoRAs with these roles, in the order in which they take turns."""
    places = [ROLES.index(role) if role in ROLES else len(ROLES) for role in roles]
    return sorted(range(len(roles)), key=lambda number: (places[number], number))


@dataclass(frozen=True, kw_only=True)
class KLora(Scheduled):
    """K-LoRA (arXiv 2502.18461): at each matrix and step the LoRA whose K = r_1 r_2 largest numbers
    weigh more, those of the style times gamma (alpha t / T + beta), with
    gamma = sum |dW_content| / sum |dW_style|."""

    kind = "k-lora"
    title = "K-LoRA"
    description = (
        "Of a subject and a style the stronger one at each matrix and step; the style gains from "
        "step to step."
    )
    brief = "the stronger one at each matrix"
    paper = "https://arxiv.org/abs/2502.18461"
    exactly = 2

    alpha: float = setting(
        1.5, at_least=0, at_most=100, label="Alpha", help="How much the style gains until the end."
    )
    beta: float = setting(
        0.5, at_least=0, at_most=100, label="Beta", help="How much the style counts at first."
    )

    def granularity(self, plan: Plan) -> Granularity:
        """Each matrix for itself."""
        return "matrix"

    def schedule(self, experts: Mapping[str, Expert]) -> Schedule:
        """The second of the two is the style unless the first alone is called one."""
        from composer.fusions.merging import strongest_sums

        roles = [expert.info.role for expert in experts.values()]
        style = 0 if roles[0] == "style" != roles[-1] else len(roles) - 1
        sums, gamma = strongest_sums(tuple(experts.values()), style)

        def picked(unit: str, index: int, total: int) -> list[float]:
            found = sums.get(unit)
            if found is None:  # one LoRA alone changes it
                return [1.0] * len(roles)
            times = gamma * (self.alpha * index / total + self.beta)
            wins = found[style] * times > found[1 - style]
            return [float((number == style) == wins) for number in range(len(roles))]

        return picked
