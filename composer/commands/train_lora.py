"""`composer train-lora`: pictures in, a LoRA file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from composer.commands._following import follow
from composer.commands.generate import TOYBOX


def register(app: typer.Typer) -> None:
    """Add `composer train-lora`."""
    app.command("train-lora")(train_lora)


def train_lora(
    context: typer.Context,
    pictures: Annotated[
        Path,
        typer.Argument(help="Folder of pictures, with name.txt beside name.png or metadata.jsonl."),
    ],
    output: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[
        str, typer.Option(help="Model folder or hub name.", show_default="the toybox")
    ] = TOYBOX,
    trigger: Annotated[
        str, typer.Option(help="The word that calls the LoRA; caption of pictures without one.")
    ] = "",
    role: Annotated[
        str, typer.Option(help="character, clothing, style, background, object or other.")
    ] = "other",
    title: Annotated[str, typer.Option(help="A name for people.")] = "",
    description: Annotated[str, typer.Option(help="A sentence for people.")] = "",
    rank: Annotated[int, typer.Option(help="Width of the factors.")] = 8,
    alpha: Annotated[float | None, typer.Option(help="Strength; the rank if not given.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Layers to train, by the end of their names; give it several times."),
    ] = None,
    conv: Annotated[bool, typer.Option(help="Train the convolutions too.")] = False,
    text_encoder: Annotated[bool, typer.Option(help="Train the text encoder too.")] = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Pictures at once, for each process.")] = 4,
    accumulation: Annotated[int, typer.Option(help="Batches for one step.")] = 1,
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw",
    learning_rate: Annotated[
        float, typer.Option(help="Highest learning rate; muon wants 5e-3 or so.")
    ] = 5e-4,
    text_learning_rate: Annotated[
        float | None, typer.Option(help="That of the text encoder; half of the other if not given.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine or constant.")] = "cosine",
    warmup: Annotated[int, typer.Option(help="Steps until the highest learning rate.")] = 20,
    min_snr: Annotated[float, typer.Option(help="Gamma of min-SNR weights; 0 for none.")] = 5.0,
    noise_offset: Annotated[float, typer.Option(help="For darker darks: 0.05, say.")] = 0.0,
    caption_dropout: Annotated[float, typer.Option(help="Share of captions left out.")] = 0.0,
    flip: Annotated[bool, typer.Option(help="Mirror half of the pictures.")] = False,
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels; the model's own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, slower.")] = False,
    prior_pictures: Annotated[
        Path | None, typer.Option(help="Folder of captioned pictures of what is to stay.")
    ] = None,
    prior_prompt: Annotated[
        list[str] | None,
        typer.Option(help="Let the model draw such pictures first; give it several times."),
    ] = None,
    prior_count: Annotated[int, typer.Option(help="How many it draws.")] = 64,
    prior_share: Annotated[float, typer.Option(help="Their share of each batch.")] = 0.25,
    prior_weight: Annotated[float, typer.Option(help="The weight of their loss.")] = 1.0,
    preview_every: Annotated[int, typer.Option(help="A preview every so many steps.")] = 0,
    preview_prompt: Annotated[
        str, typer.Option(help="What the previews show; the trigger if not given.")
    ] = "",
    save_preview: Annotated[bool, typer.Option(help="Write a picture beside the LoRA.")] = False,
    checkpoint_every: Annotated[
        int, typer.Option(help="Keep a state to resume from every so many steps.")
    ] = 100,
    resume: Annotated[bool, typer.Option(help="Go on where a stopped training was.")] = False,
    naming: Annotated[str, typer.Option(help="Names in the file: kohya or diffusers.")] = "kohya",
    file_type: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, …; what accelerate chooses if not given.")
    ] = "",
) -> None:
    """Train a LoRA on a folder of pictures; several processes: `torchrun -m composer …`."""
    import torch

    from composer.diffusion.load import load_model
    from composer.training import LoraTraining, train_lora as train
    from composer.training.processes import join_processes

    # Every parameter but these is a setting of the same name.
    settings = {
        name: value for name, value in context.params.items() if name not in {"model", "device"}
    }
    settings["targets"] = settings.pop("target") or LoraTraining.targets
    settings["prior_prompts"] = settings.pop("prior_prompt") or ()
    settings["min_snr_gamma"] = settings.pop("min_snr") or None
    config = LoraTraining.from_json(settings)
    processes = join_processes(device)
    loaded = load_model(model, device=device or processes.device, dtype=torch.float32)
    follow(
        lambda cancelled: train(loaded, config, cancelled=cancelled),
        config,
        main=processes.is_main_process,
    )
