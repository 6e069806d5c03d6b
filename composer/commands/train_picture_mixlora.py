"""`composer train-picture-mixlora`: folders of pictures in, one MixLoRA file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from composer.commands import _options as options
from composer.commands._settings import of_kind, with_settings
from composer.commands._watching import follow_pictures
from composer.errors import ComposerError
from composer.mixlora import LoraSettings, MixLoraSettings, RouterSettings
from composer.training.mixlora.settings import SMALL, ImageSet, PictureMixLoraTraining


@with_settings(
    PictureMixLoraTraining,
    RouterSettings,
    arguments=("output",),
    without=("strategy", "top_p", "capacity", "remainder", "jitter"),
    steps=1000,
    experts=SMALL.router.experts,
    top_k=SMALL.router.top_k,
    balance=SMALL.router.balance,
    checkpoint_every=options.CHECKPOINT_EVERY,
)
def train_picture_mixlora(
    sets: Annotated[
        list[str],
        Option("--set", help="TRIGGER=FOLDER, an image set; give it several times."),
    ],
    rank: Annotated[int, Option(help="Width of an expert's factors.")] = SMALL.experts.rank,
    alpha: Annotated[float | None, Option(help="Strength; the rank if not given.")] = None,
    dropout: Annotated[float, Option(help="Dropout before all factors.")] = SMALL.experts.dropout,
    attention_rank: Annotated[
        int, Option(help="Width of plain LoRA on the attention; 0 for none.")
    ] = SMALL.experts.rank,
    conv_rank: Annotated[
        int, Option(help="Width of plain LoRA on the convolutions; 0 for none.")
    ] = 0,
    model: options.Model = options.TOYBOX,
    vae: options.Vae = None,
    device: options.ChosenDevice = "",
    **settings: Any,
) -> None:
    """Train one MixLoRA on several image sets at once: each its own trigger, experts shared."""
    from composer.training.mixlora.train import train_picture_mixlora as train

    def plain(width: int) -> LoraSettings | None:
        return LoraSettings(rank=width, alpha=width, dropout=dropout) if width else None

    config = PictureMixLoraTraining(
        **of_kind(PictureMixLoraTraining, settings),
        sets=tuple(map(_read_set, sets)),
        adapter=MixLoraSettings(
            experts=LoraSettings(
                rank=rank, alpha=rank if alpha is None else alpha, dropout=dropout
            ),
            attention=plain(attention_rank),
            convolutions=plain(conv_rank),
            router=RouterSettings(**of_kind(RouterSettings, settings)),
        ),
    )
    follow_pictures(train, config, model=model, vae=vae, device=device)


def _read_set(text: str) -> ImageSet:
    trigger, equals, folder = text.partition("=")
    if not equals or not trigger.strip() or not folder.strip():
        raise ComposerError(
            f'--set {text!r} is not understood. Write --set "zibo fox=pictures/zibo": the trigger,'
            " then the folder."
        )
    return ImageSet(trigger=trigger.strip(), pictures=Path(folder.strip()).expanduser())
