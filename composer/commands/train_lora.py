"""`composer train-lora`: pictures in, a LoRA file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from composer.commands import _options as options
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
    model: options.Model = TOYBOX,
    trigger: Annotated[
        str, typer.Option(help="The word that calls the LoRA; caption of pictures without one.")
    ] = "",
    role: Annotated[
        str, typer.Option(help="character, clothing, style, background, object or other.")
    ] = "other",
    title: options.Title = "",
    description: options.Description = "",
    rank: Annotated[int, typer.Option(help="Width of the factors.")] = 8,
    alpha: options.Alpha = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Layers to train, by the end of their names; give it several times."),
    ] = None,
    conv: Annotated[bool, typer.Option(help="Train the convolutions too.")] = False,
    text_encoder: Annotated[bool, typer.Option(help="Train the text encoder too.")] = False,
    steps: options.Steps = 500,
    batch_size: options.PictureBatch = 4,
    accumulation: options.Accumulation = 1,
    optimizer: options.Optimizer = "adamw",
    learning_rate: options.PictureRate = 5e-4,
    text_learning_rate: Annotated[
        float | None, typer.Option(help="That of the text encoder; half of the other if not given.")
    ] = None,
    schedule: options.PictureSchedule = "cosine",
    warmup: options.PictureWarmup = 20,
    min_snr: options.MinSnr = 5.0,
    noise_offset: Annotated[float, typer.Option(help="For darker darks: 0.05, say.")] = 0.0,
    caption_dropout: options.CaptionDropout = 0.0,
    flip: options.Flip = False,
    resolution: options.Resolution = None,
    seed: options.Seed = 0,
    precision: options.Precision = "float32",
    gradient_checkpointing: options.GradientCheckpointing = False,
    prior_pictures: options.PriorPictures = None,
    prior_prompt: options.PriorPrompts = None,
    prior_count: options.PriorCount = 64,
    prior_share: options.PriorShare = 0.25,
    prior_weight: Annotated[float, typer.Option(help="The weight of their loss.")] = 1.0,
    preview_every: options.PreviewEvery = 0,
    preview_prompt: Annotated[
        str, typer.Option(help="What the previews show; the trigger if not given.")
    ] = "",
    save_preview: Annotated[bool, typer.Option(help="Write a picture beside the LoRA.")] = False,
    checkpoint_every: options.PictureCheckpoints = 100,
    resume: options.Resume = False,
    naming: Annotated[str, typer.Option(help="Names in the file: kohya or diffusers.")] = "kohya",
    file_type: options.FileType = "float16",
    device: options.ChosenDevice = "",
) -> None:
    """Train a LoRA on a folder of pictures; several processes: `torchrun -m composer …`."""
    import torch

    from composer.diffusion.load import load_model
    from composer.training.lora.settings import LoraTraining
    from composer.training.lora.train import train_lora as train
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
