"""The loop all stages of the recipe share: a time budget, a log, a moving average, resumption.

A stage runs for so many minutes on whatever machine it finds; its learning rate follows the time
used, so a budget is never overrun and the rate always ends at zero. Killed at any moment it goes
on from its last checkpoint. Two processes (`world` 2) average their gradients over gloo.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from composer.training.attention import attention_for_backward
from toybox.networks import seed_torch
from toybox.optimizer import MuonAdamW
from toybox.tensors import load_metadata, load_tensors, save_tensors


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage may use: minutes, a folder for checkpoints and logs, a device.

    average: what of the moving average of the weights stays at each step. The rate ends at zero, so
        a short one is enough; a long one still holds what a stage was resumed from.
    """

    name: str
    minutes: float
    folder: Path
    device: str = "cpu"
    seed: int = 0
    checkpoint_minutes: float = 4.0
    average: float = 0.995

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    def rng(self) -> random.Random:
        """For the scenes: others in each process, and others again when the stage is resumed."""
        step = counts(self.checkpoint)[0] if self.checkpoint.exists() else 0
        return random.Random(f"{self.name} {world()[0]} {self.seed} {step}")


def world() -> tuple[int, int]:
    """(this process's rank, how many processes): (0, 1) outside torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_world() -> None:
    """Join the processes torchrun started, if it did; one thread each on a CPU."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")


def run_stage(
    stage: Stage,
    model: nn.Module,
    optimizer: MuonAdamW,
    loss: Callable[[float], tuple[Tensor, dict[str, float], int]],
    *,
    sample: Callable[[nn.Module, int], None] | None = None,
    warmup: int = 50,
) -> nn.Module:
    """Train `model` in place until the budget is used; returns its moving average.

    Args:
        loss: from the part of the budget used (0 to 1) to (loss, figures for the log, pictures).
        sample: called with the averaged model and the step at each checkpoint, to draw it.
    """
    rank, size = world()
    averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step, images, used = 0, 0, 0.0
    if stage.checkpoint.exists():
        step, images, used = _load(stage.checkpoint, model, averaged, optimizer)
        if rank == 0:
            print(f"{stage.name}: goes on from step {step}, {used / 60:.1f} min used", flush=True)
    # a resumed run must not draw the same scenes again
    seed_torch(stage.seed + 1000 * rank + step)
    begun = time.monotonic() - used
    saved, logged = used, used
    smooth: dict[str, float] = {}
    while True:
        used = time.monotonic() - begun
        if size > 1:  # all processes must leave at the same step
            clock = torch.tensor([used])
            dist.broadcast(clock, 0)
            used = float(clock)
        part = min(used / (stage.minutes * 60), 1.0)
        if part >= 1.0:
            break
        with attention_for_backward(stage.device):
            value, figures, count = loss(part)
            torch.autograd.backward(value)
        if size > 1:
            _average_gradients(optimizer.parameters, size)
        nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
        optimizer.step(_rate(part) * min((step + 1) / warmup, 1.0))
        step, images = step + 1, images + count * size
        decay = min(stage.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, current in model.state_dict().items():
                if current.is_floating_point():
                    averaged[key].lerp_(current.detach(), 1 - decay)
                else:
                    averaged[key].copy_(current)
        for key, figure in figures.items():
            smooth[key] = figure + 0.98 * (smooth.get(key, figure) - figure)
        if rank == 0 and used - logged > 15:
            logged = used
            left = stage.minutes - used / 60
            line = {"stage": stage.name, "step": step, "images": images}
            line |= {"minutes": round(used / 60, 2), "left": round(left, 1)}
            line |= {key: round(figure, 4) for key, figure in smooth.items()}
            print(json.dumps(line), flush=True)
        if rank == 0 and used - saved > stage.checkpoint_minutes * 60:
            saved = used
            _save(stage.checkpoint, model, averaged, optimizer, (step, images, used))
            if sample is not None:
                sample(_with(model, averaged), step)
                _with(model, averaged)
    if rank == 0:
        _save(stage.checkpoint, model, averaged, optimizer, (step, images, stage.minutes * 60))
    _with(model, averaged)
    if rank == 0 and sample is not None:
        sample(model, step)
    return model


def _with(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Exchange the model's weights with `weights`, in place on both sides; twice is nothing."""
    with torch.no_grad():
        for key, current in model.state_dict().items():
            kept = current.detach().clone()
            current.copy_(weights[key])
            weights[key].copy_(kept)
    return model


def _rate(part: float) -> float:
    """Constant for the first 40 % of the budget, then a cosine to zero."""
    return 1.0 if part < 0.4 else 0.5 * (1 + math.cos(math.pi * (part - 0.4) / 0.6))


def _average_gradients(parameters: list[nn.Parameter], size: int) -> None:
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in grads])
    cast(Any, dist).all_reduce(flat)
    flat /= size
    parts = torch.split(flat, [p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.grad = part.view(p.shape)


def _save(
    path: Path,
    model: nn.Module,
    averaged: dict[str, Tensor],
    optimizer: MuonAdamW,
    counts: tuple[int, int, float],
) -> None:
    tensors = {f"model.{k}": v.contiguous().clone() for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous().clone() for k, v in averaged.items()}
    tensors |= {f"optimizer.{k}": v.contiguous() for k, v in optimizer.tensors().items()}
    save_tensors(path, tensors, {"counts": json.dumps(counts)})


def _load(
    path: Path, model: nn.Module, averaged: dict[str, Tensor], optimizer: MuonAdamW
) -> tuple[int, int, float]:
    model.load_state_dict(load_tensors(path, "model."))
    for key, value in load_tensors(path, "average.").items():
        averaged[key].copy_(value)
    optimizer.load_tensors(load_tensors(path, "optimizer."))
    return counts(path)


def load_average(path: Path, model: nn.Module) -> nn.Module:
    """The averaged weights of a stage's checkpoint, put into `model`."""
    model.load_state_dict(load_tensors(path, "average."))
    return model


def counts(path: Path) -> tuple[int, int, float]:
    """(steps, pictures seen, seconds used) of a stage's checkpoint."""
    steps, pictures, seconds = json.loads(load_metadata(path)["counts"])
    return int(steps), int(pictures), float(seconds)
