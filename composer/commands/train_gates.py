"""`composer train-gates`: several LoRAs in, one gate file out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._loras import find_once
from composer.commands._settings import with_settings
from composer.commands._watching import follow
from composer.errors import ComposerError
from composer.training.gates.settings import GateTraining

if TYPE_CHECKING:
    from composer.training.gates.prompts import Called


@with_settings(GateTraining, checkpoint_every=options.CHECKPOINT_EVERY)
def train_gates(
    loras: options.LoraNames,
    prompt: options.ComposedPrompts = None,
    alone: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PROMPT, that names this LoRA alone; drafted likewise; repeatable."),
    ] = None,
    model: options.Model = options.TOYBOX,
    vae: options.Vae = None,
    lora_dir: options.LoraFolders = None,
    partial: options.Partial = False,
    device: options.ChosenDevice = "",
    **settings: Any,
) -> None:
    """Train gates that fuse LoRAs (MoLE); the LoRAs and the model stay as they are."""
    import torch

    from composer.diffusion.clip import check_clip
    from composer.diffusion.load import load_model
    from composer.experts import LORAS, Library, ModuleNames, read_expert
    from composer.training.gates.prompts import Called
    from composer.training.gates.train import train_gates as train_on
    from composer.training.processes import join_processes

    library = Library(lora_dir or [options.LORA_FOLDER], LORAS)
    cards = dict(zip(loras, find_once(library, loras), strict=True))
    own = _read_alone(alone or (), loras)
    config = GateTraining(**settings, prompts=tuple(prompt or ()), alone=own)
    if config.clip:
        check_clip(config.clip)
    config = _with_drafts(
        config,
        [Called(name=n, trigger=c.info.trigger, role=c.info.role) for n, c in cards.items()],
    )
    processes = join_processes(device)
    loaded = load_model(model, device=device or processes.device, dtype=torch.float32, vae=vae)
    modules = ModuleNames.of(loaded.models, model=loaded.name)
    experts = [
        read_expert(card.path, modules, name=name, partial=partial) for name, card in cards.items()
    ]
    follow(
        lambda cancelled: train_on(loaded, experts, config, cancelled=cancelled),
        [config],
        main=processes.is_main_process,
    )


def _read_alone(words: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each name, the prompts that were given for it."""
    found: dict[str, tuple[str, ...]] = {}
    for text in words:
        # the longest, for a name may hold an = itself
        name = max((n for n in names if text.startswith(f"{n}=")), key=len, default="")
        prompt = text[len(name) + 1 :].strip()
        if not (name and prompt):
            raise ComposerError(
                f"--alone {text!r} is not understood: write --alone NAME=PROMPT, where NAME is one "
                f"of {', '.join(names)}."
            )
        found[name] = (*found.get(name, ()), prompt)
    return found


def _with_drafts(config: GateTraining, called: Sequence[Called]) -> GateTraining:
    """With drafted prompts in place of those that were not given.

    A LoRA without trigger words can have none drafted.

    Raises:
        ComposerError: the training needs just those.
    """
    from composer.training.gates.prompts import draft_prompts

    unnamed = [one.name for one in called if not one.trigger.strip()]
    drafted = draft_prompts([one for one in called if one.name not in unnamed], seed=config.seed)
    alone = {**drafted.alone, **config.alone}
    if unnamed and not config.prompts:
        raise _undrafted(unnamed[0], "--prompt PROMPT")
    lacking = [name for name in unnamed if name not in alone]
    if lacking and config.paper:
        raise _undrafted(lacking[0], f"--alone {lacking[0]}=PROMPT")
    return dataclasses.replace(
        config,
        prompts=config.prompts or drafted.composed,
        alone={one.name: alone[one.name] for one in called if one.name in alone},
    )


def _undrafted(name: str, remedy: str) -> ComposerError:
    return ComposerError(
        f"The LoRA {name!r} names no trigger word, so no prompt can be drafted for it: write "
        f"your own, {remedy}."
    )
