"""`composer train-picture-mixlora`: folders of pictures in, one MixLoRA file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands._following import follow
from composer.commands.generate import TOYBOX
from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.mixture.mixlora_settings import MixLoraSettings
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
    model: Annotated[
        str, typer.Option(help="Model folder or hub name.", show_default="the toybox")
    ] = TOYBOX,
    title: Annotated[str, typer.Option(help="A name for people.")] = "",
    description: Annotated[str, typer.Option(help="A sentence for people.")] = "",
    experts: Annotated[int, typer.Option(help="Experts in each feed-forward.")] = 4,
    top_k: Annotated[int, typer.Option(help="How many a token is sent to.")] = 2,
    rank: Annotated[int, typer.Option(help="Width of an expert's factors.")] = 8,
    alpha: Annotated[float | None, typer.Option(help="Strength; the rank if not given.")] = None,
    dropout: Annotated[float, typer.Option(help="Dropout before all factors.")] = 0.0,
    balance: Annotated[float, typer.Option(help="Coefficient of the balance loss.")] = 1e-2,
    attention_rank: Annotated[
        int, typer.Option(help="Width of plain LoRA on the attention; 0 for none.")
    ] = 8,
    conv_rank: Annotated[
        int, typer.Option(help="Width of plain LoRA on the convolutions; 0 for none.")
    ] = 0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Pictures at once, for each process.")] = 4,
    accumulation: Annotated[int, typer.Option(help="Batches for one step.")] = 1,
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw",
    learning_rate: Annotated[
        float, typer.Option(help="Highest learning rate; muon wants 5e-3 or so.")
    ] = 5e-4,
    schedule: Annotated[str, typer.Option(help="cosine or constant.")] = "cosine",
    warmup: Annotated[int, typer.Option(help="Steps until the highest learning rate.")] = 20,
    min_snr: Annotated[float, typer.Option(help="Gamma of min-SNR weights; 0 for none.")] = 5.0,
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
    preview_every: Annotated[int, typer.Option(help="A preview every so many steps.")] = 0,
    preview_prompt: Annotated[
        str, typer.Option(help="What the previews show; two of the triggers if not given.")
    ] = "",
    save_preview: Annotated[bool, typer.Option(help="Write a picture beside the file.")] = False,
    checkpoint_every: Annotated[
        int, typer.Option(help="Keep a state to resume from every so many steps.")
    ] = 100,
    resume: Annotated[bool, typer.Option(help="Go on where a stopped training was.")] = False,
    file_type: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, …; what accelerate chooses if not given.")
    ] = "",
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
    from composer.mixture.lora_settings import LoraSettings
    from composer.mixture.mixlora_settings import MixLoraSettings
    from composer.mixture.routers import RouterSettings

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
