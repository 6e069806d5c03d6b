"""`composer train-gates`: several LoRAs in, one gate file out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composer.commands import _options as options
from composer.commands._loras import find_once
from composer.commands._watching import finish, show, stopped_by_user
from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.training.gates import Called, GateProgress, GateTraining

ROOT = Path(__file__).parents[2]
_OTHER = {"loras", "prompt", "alone", "model", "lora_dir", "device"}
"""Parameters that are no setting of a training by the same name."""


def register(app: typer.Typer) -> None:
    """Add `composer train-gates`."""
    app.command("train-gates")(train_gates)


def train_gates(
    context: typer.Context,
    loras: options.LoraNames,
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    prompt: options.ComposedPrompts = None,
    alone: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PROMPT, that names this LoRA alone; drafted likewise; repeatable."),
    ] = None,
    granularity: options.Granularity = "block",
    input: Annotated[
        str,
        typer.Option(
            help="Gates see hidden, placed (and where each LoRA's words act), or with --paper "
            "experts; auto: placed where several LoRAs draw figures."
        ),
    ] = "auto",
    depth: Annotated[
        float, typer.Option(help="Gates from this depth of the U-Net on: 0 is all of it.")
    ] = 0.0,
    company: Annotated[
        str,
        typer.Option(
            help="Beside which others each LoRA judges: fitting (all, but a figure beside no other "
            "figure), or nobody."
        ),
    ] = "fitting",
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Gates and training as published, judged by CLIP."),
    ] = False,
    clip: Annotated[
        str,
        typer.Option(help="With --paper: a CLIP by folder or hub name, if not the model's own."),
    ] = "",
    steps: options.Steps = 120,
    batch_size: options.RecordBatch = 8,
    accumulation: options.Accumulation = 1,
    learning_rate: options.HighestRate = 1e-2,
    seed: options.Seed = 0,
    gradient_checkpointing: options.GradientCheckpointing = False,
    precision: options.Precision = "float32",
    preview_every: options.PreviewEvery = 0,
    preview_prompt: Annotated[str, typer.Option(help="What the previews show.")] = "",
    checkpoint_every: Annotated[int, typer.Option(help="Keep a state every so many steps.")] = 100,
    resume: options.Resume = False,
    model: options.Model = str(ROOT / "assets" / "toybox"),
    lora_dir: options.LoraFolders = None,
    device: options.ChosenDevice = "",
) -> None:
    """Train gates that fuse LoRAs (MoLE); the LoRAs and the model stay as they are."""
    import torch

    from composer.diffusion.clip import check_clip
    from composer.diffusion.load import load_model
    from composer.experts import Library, ModuleNames, read_expert
    from composer.training.gates import Called, GateTraining
    from composer.training.processes import join_processes

    library = Library(lora_dir or [ROOT / "loras"])
    cards = dict(zip(loras, find_once(library, loras), strict=True))
    config = GateTraining.from_json(
        {name: value for name, value in context.params.items() if name not in _OTHER}
        | {"prompts": prompt or (), "alone": _read_alone(alone or (), loras)}
    )
    if clip:
        check_clip(clip)
    config = _with_drafts(
        config,
        [Called(name=n, trigger=c.info.trigger, role=c.info.role) for n, c in cards.items()],
    )
    processes = join_processes(device)
    loaded = load_model(model, device=device or processes.device, dtype=torch.float32)
    modules = ModuleNames.of(loaded.models, model=loaded.name)
    experts = [read_expert(card.path, modules, name=name) for name, card in cards.items()]
    from composer.training.gates import train_gates

    main, last = processes.is_main_process, None
    with stopped_by_user() as stopped:
        for last in train_gates(loaded, experts, config, cancelled=stopped.is_set):
            if main:
                _show(last, config)
    written = None if last is None else last.path
    finish([written], stopped=stopped.is_set(), checkpoints=[config.checkpoint], main=main)


def _read_alone(words: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Of each name, the prompts that were given for it."""
    found: dict[str, list[str]] = {}
    for text in words:
        # the longest, for a name may hold an = itself
        name = max((n for n in names if text.startswith(f"{n}=")), key=len, default="")
        prompt = text[len(name) + 1 :].strip()
        if not (name and prompt):
            raise ComposerError(
                f"--alone {text!r} is not understood: write --alone NAME=PROMPT, where NAME is one "
                f"of {', '.join(names)}."
            )
        found.setdefault(name, []).append(prompt)
    return found


def _with_drafts(config: GateTraining, called: Sequence[Called]) -> GateTraining:
    """With drafted prompts in place of those that were not given.

    A LoRA without trigger words can have none drafted.

    Raises:
        ComposerError: the training needs just those.
    """
    from composer.training.gates import draft_prompts

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


def _show(progress: GateProgress, config: GateTraining) -> None:
    words = {"alone": "LoRAs alone", "train": "step", "saved": "saved"}
    line = f"{words[progress.stage]} {progress.step}/{progress.total}"
    for group, loss in progress.losses.items():
        line += f"  {group} {loss:.3f}"
    if progress.entropy is not None:
        line += f"  entropy {progress.entropy:.2f}"
    if progress.skipped:
        line += f"  skipped {progress.skipped}"
    show(line, step=progress.step, total=progress.total, seconds_left=progress.seconds_left)
    if progress.preview is not None:
        name = f"{config.output.stem}-{progress.step:06}.png"
        progress.preview.save(config.output.with_name(name))
