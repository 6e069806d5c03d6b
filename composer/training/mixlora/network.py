"""The trainable part of a MixLoRA on a U-Net."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from composer.fusions.mixlora_file import ADAPTER
from composer.mixlora import MixLoraSettings, Tape, attach_mixlora
from composer.mixlora.router_losses import Over, balance_loss

KEPT = 0.98
"""How much of the running means of what routers do is kept at each pass."""


class MixLoraNetwork:
    """Experts, routers and plain LoRA on a U-Net, in float32, the only trainable parameters.

    models: the parts that are frozen meanwhile, the U-Net among them as "unet".
    balance: the running mean of the balance loss without its coefficient; the number of choices,
        such as 2, where the experts are used evenly. None before the first pass.
    loads: by FFN, the running mean of the part of the choices that each expert got.
    """

    def __init__(
        self,
        models: dict[str, nn.Module],
        settings: MixLoraSettings,
        *,
        seed: int,
        rate: float,
        balance_over: Over = "all",
    ) -> None:
        self._rate = rate
        self._over: Over = balance_over
        self.mixlora = attach_mixlora(models["unet"], {ADAPTER: settings}, seed=seed)
        self._frozen = [
            parameter
            for part, model in models.items()
            for parameter in model.parameters()
            if part != "unet" and parameter.requires_grad
        ]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        for stand_in in (*self.mixlora.hosts.values(), *self.mixlora.sites.values()):
            stand_in.adapters[ADAPTER].train()  # the model itself stays as it runs
        self.balance: float | None = None
        self.loads: dict[str, Tensor] = {}

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by path."""
        return dict(self.mixlora.named_parameters(ADAPTER))

    def groups(self) -> list[dict[str, Any]]:
        """Routers apart: the first axis of all else counts experts."""
        routers: list[nn.Parameter] = []
        stacks: list[nn.Parameter] = []
        for path, parameter in self.mixlora.named_parameters(ADAPTER):
            is_stack = parameter.ndim > 2 and ".router." not in path
            (stacks if is_stack else routers).append(parameter)
        return [
            {"params": stacks, "lr": self._rate, "stacked": True},
            {"params": routers, "lr": self._rate, "stacked": False},
        ]

    def record_routing(self) -> AbstractContextManager[Tape]:
        """Collects what the routers decide."""
        return self.mixlora.record_routing()

    def router_loss(self, tape: Tape) -> Tensor:
        """The balance loss (and the switch router's z-loss) with its coefficient."""
        with torch.no_grad():
            now = float(balance_loss(tape, over=self._over))
            self.balance = now if self.balance is None else _mean(self.balance, now)
            for host, load in self.mixlora.loads(tape, ADAPTER).items():
                before = self.loads.get(host)
                self.loads[host] = load if before is None else _mean(before, load)
        return self.mixlora.router_loss(tape, ADAPTER, over=self._over)

    def state(self) -> dict[str, Tensor]:
        """The running means."""
        means = {f"loads.{host}": load for host, load in self.loads.items()}
        if self.balance is not None:
            means["balance"] = torch.tensor(self.balance, dtype=torch.float64)
        return means

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.balance = float(state["balance"]) if "balance" in state else None
        self.loads = {
            name.removeprefix("loads."): load for name, load in state.items() if name != "balance"
        }

    def detach(self) -> None:
        """Put the original modules back."""
        self.mixlora.detach()
        while self._frozen:
            self._frozen.pop().requires_grad_(True)


def _mean(before: Any, now: Any) -> Any:
    return KEPT * before + (1.0 - KEPT) * now
