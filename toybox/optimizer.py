"""The optimizer of the toybox's recipe: Muon for matrices, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from composer.training.muon import Muon


class MuonAdamW:
    """Muon for a model's hidden matrices and AdamW for all else, stepped as one.

    Embeddings, the first and last convolution, norms, biases and throw-away heads go to AdamW.
    """

    def __init__(self, model: nn.Module, *, muon_lr: float, adam_lr: float) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            outer = any(
                part in name
                for part in ("conv_in", "conv_out", "embedding", "embed_tokens", "heads")
            )
            hidden = parameter.ndim in (2, 4) and min(parameter.shape[:2]) >= 8 and not outer
            (matrices if hidden else others).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon_lr),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]
        self._base = [muon_lr, adam_lr]
        self.parameters = [*matrices, *others]

    def step(self, factor: float) -> None:
        """One update with both learning rates times `factor`; gradients are then cleared."""
        for part, base in zip(self.parts, self._base, strict=True):
            for group in part.param_groups:
                group["lr"] = base * factor
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, to be saved as safetensors."""
        found: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            for index, state in part.state_dict()["state"].items():
                for key, value in state.items():
                    found[f"{number}.{index}.{key}"] = value
        return found

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for number, part in enumerate(self.parts):
            whole = part.state_dict()
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                owner, index, key = name.split(".")
                if int(owner) == number:
                    state.setdefault(int(index), {})[key] = value
            part.load_state_dict(whole | {"state": state})
