"""`composer train-picture-mixlora`: folders of pictures in, one MixLoRA file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._following import follow
from composer.commands.generate import TOYBOX
from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.mixlora import MixLoraSettings
    from composer.training.mixlora import ImageSet


def register(app: typer.Typer) -> None:
    """Add `composer train-picture-mixlora`."""
    app.command("train-picture-mixlora")(train_picture_mixlora)


def train_picture_mixlora(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    image_set: Annotated[
        list[str],
        typer.Option("--set", help="TRIGGER=FOLDER, an image set; give it several times."),
    ],
    model: options.Model = TOYBOX,
    title: options.Title = "",
    description: options.Description = "",
    experts: Annotated[int, typer.Option(help="Experts in each feed-forward.")] = 4,
    top_k: Annotated[int, typer.Option(help="How many a token is sent to.")] = 2,
    rank: Annotated[int, typer.Option(help="Width of an expert's factors.")] = 8,
    alpha: options.Alpha = None,
    dropout: Annotated[float, typer.Option(help="Dropout before all factors.")] = 0.0,
    balance: Annotated[float, typer.Option(help="Coefficient of the balance loss.")] = 1e-2,
    attention_rank: Annotated[
        int, typer.Option(help="Width of plain LoRA on the attention; 0 for none.")
    ] = 8,
    conv_rank: Annotated[
        int, typer.Option(help="Width of plain LoRA on the convolutions; 0 for none.")
    ] = 0,
    steps: options.Steps = 1000,
    batch_size: options.PictureBatch = 4,
    accumulation: options.Accumulation = 1,
    optimizer: options.Optimizer = "adamw",
    learning_rate: options.PictureRate = 5e-4,
    schedule: options.PictureSchedule = "cosine",
    warmup: options.PictureWarmup = 20,
    min_snr: options.MinSnr = 5.0,
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
    preview_every: options.PreviewEvery = 0,
    preview_prompt: Annotated[
        str, typer.Option(help="What the previews show; two of the triggers if not given.")
    ] = "",
    save_preview: Annotated[bool, typer.Option(help="Write a picture beside the file.")] = False,
    checkpoint_every: options.PictureCheckpoints = 100,
    resume: options.Resume = False,
    file_type: options.FileType = "float16",
    device: options.ChosenDevice = "",
) -> None:
    """Train one MixLoRA on several image sets at once: each its own trigger, experts shared."""
    import torch

    from composer.diffusion.load import load_model
    from composer.training.mixlora import PictureMixLoraTraining, train_picture_mixlora as train
    from composer.training.processes import join_processes

    # Every parameter but these is a setting of the same name.
    others = {"model", "device", "image_set", "experts", "top_k", "rank", "alpha", "dropout"}
    others |= {"balance", "attention_rank", "conv_rank", "prior_prompt", "min_snr"}
    settings = {name: value for name, value in context.params.items() if name not in others}
    settings["prior_prompts"] = prior_prompt or ()
    settings["min_snr_gamma"] = min_snr or None
    settings["sets"] = tuple(map(_read_set, image_set))
    settings["adapter"] = _adapter(context.params)
    config = PictureMixLoraTraining.from_json(settings)
    processes = join_processes(device)
    loaded = load_model(model, device=device or processes.device, dtype=torch.float32)
    follow(
        lambda cancelled: train(loaded, config, cancelled=cancelled),
        config,
        main=processes.is_main_process,
    )


def _read_set(text: str) -> ImageSet:
    from composer.training.mixlora import ImageSet

    trigger, equals, folder = text.partition("=")
    if not equals or not trigger.strip() or not folder.strip():
        raise ComposerError(
            f'--set {text!r} is not understood. Write --set "zibo fox=pictures/zibo": the trigger,'
            " then the folder."
        )
    return ImageSet(trigger=trigger.strip(), pictures=Path(folder.strip()).expanduser())


def _adapter(given: dict[str, Any]) -> MixLoraSettings:
    from composer.mixlora import LoraSettings, MixLoraSettings, RouterSettings

    def plain(rank: int) -> LoraSettings | None:
        return LoraSettings(rank=rank, alpha=rank, dropout=given["dropout"]) if rank else None

    rank, alpha = given["rank"], given["alpha"]
    return MixLoraSettings(
        experts=LoraSettings(
            rank=rank, alpha=rank if alpha is None else alpha, dropout=given["dropout"]
        ),
        attention=plain(given["attention_rank"]),
        convolutions=plain(given["conv_rank"]),
        router=RouterSettings(
            experts=given["experts"], top_k=given["top_k"], balance=given["balance"]
        ),
    )
