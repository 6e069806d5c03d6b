"""Less memory on the device: one network there at a time, and pictures decoded piece by piece."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from composer.diffusion.model import Model
from composer.errors import ComposerError


def with_low_memory(model: Model, device: torch.device) -> Model:
    """The same model, which is in main memory, to be run on `device`.

    A network comes onto the device when it is run, and the one that ran before it leaves. The VAE
    encodes and decodes one picture after the other, and those larger than the pictures that it was
    trained on in overlapping tiles: up to that size a picture is the same.
    """
    model.vae.enable_slicing()
    model.vae.enable_tiling()
    if device.type == "cpu":
        return model
    return offload(model, device)


def offload(model: Model, device: torch.device) -> Model:
    """The same model, whose networks are on `device` only while they are run."""
    turn = _Turn(device)
    for network in (*model.models.values(), model.vae):
        add_hook_to_module(network, _OnlyOne(turn))
    return replace(model, device=device, is_offloaded=True)


def check_here(model: Model) -> None:
    """Refuse to train on a model whose networks come and go: a step would move them many times.

    Raises:
        ComposerError: it was loaded to take little memory on its device.
    """
    if model.is_offloaded:
        raise ComposerError(
            f"{model.name} was loaded with --lowvram, and nothing is trained on it: start Composer "
            "without. Gradient checkpointing saves memory in a training."
        )


class _Turn:
    """Which network is on the device now."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.network: nn.Module | None = None

    def give(self, network: nn.Module) -> None:
        # also where it has its turn: what was attached meanwhile may not be there yet
        if self.network is not None and self.network is not network:
            self.network.to("cpu")
        self.network = network.to(self.device)


class _OnlyOne(ModelHook):
    """Gives a network its turn before it runs; of diffusers' VAE also before it en- or decodes."""

    def __init__(self, turn: _Turn) -> None:
        self._turn = turn

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._turn.give(module)
        device = self._turn.device
        move: Any = import_module("accelerate.utils").send_to_device
        return move(args, device), move(kwargs, device)
