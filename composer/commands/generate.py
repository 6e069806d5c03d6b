"""`composer generate`: what the page does, on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from composer.clock import left
from composer.commands import _options as options
from composer.commands._settings import options_by_name, with_settings
from composer.diffusion.request import Request, Start
from composer.errors import ComposerError

if TYPE_CHECKING:
    from PIL import Image

    from composer.fusions import LoraRow, Recipe
    from composer.fusions.places import Place
    from composer.studio import Event, SavedPicture, Studio

_LIMITS = {"@": "steps", "^": "depth"}  # the marks before them in --lora
_PLACED = re.compile(r"(.*?=[^=#]*)#(.*)")  # a name may hold a # itself
_SIZE = re.compile(r"(\d{1,6})\s*[x×]\s*(\d{1,6})")


@with_settings(Request, cfg_scale=3.0)
def generate(
    context: typer.Context,
    prompt: str = typer.Argument("", help="What to paint; may hold tags, <lora:name:0.8>."),
    lora: list[str] = typer.Option(
        [],
        help="NAME=WEIGHT, or NAME=UNET,TEXT for the text encoder's own; with gates "
        "NAME=1.2 makes it stronger than they do, and NAME=0 switches it off. NAME=1@0:0.5 "
        "keeps it to the first half of the steps, NAME=1^0:0.2 to the first fifth of "
        "the U-Net's depth, and NAME=1@0:0.5^0:0.2 to where both hold. With --fusion places "
        "NAME=1#0:0:0.5:1 is for the left half of the picture (LEFT:TOP:RIGHT:BOTTOM as parts of "
        "it), and NAME=1#FILE for where that picture is light.",
    ),
    pin: list[str] = typer.Option(
        [],
        help="Weights of a unit by hand, whatever the gates give there: UNIT:NAME=1,OTHER=0.5, or "
        "of several by a pattern, 'mid_block.*:NAME=1'; a LoRA that is not named has weight 0. "
        "Without gates the units are the U-Net's blocks. Repeatable; '' takes back a picture's.",
    ),
    size: str = typer.Option("", help="WIDTHxHEIGHT in pixels; the model's own unless given."),
    fusion: str = typer.Option(
        "weighted",
        help="How LoRAs are fused, by the name in docs/methods.md: weighted, nla, regions, ties, "
        "switch …; parameters after a colon, ties:density=0.3,rank=8.",
    ),
    gates: str = typer.Option(
        "", help="Learned gates in place of a fusion: the name of a gate file, or its path."
    ),
    mixlora: str = typer.Option(
        "", help="A MixLoRA below the LoRAs: its name, or its file's path; LoRAs need not be given."
    ),
    gate_map: bool = typer.Option(
        False,
        "--gate-map",
        help="Keep the gates' weights beside the picture: NAME.gates.npz.",
    ),
    expand: bool = typer.Option(
        False, "--expand", help="First make a full prompt of the words, as `composer expand` does."
    ),
    language_model: str | None = typer.Option(
        None, help="What expands: a folder or a hub name.", show_default="the toybox's"
    ),
    adapter: Path | None = typer.Option(None, help="A MixLoRA or LoRA for the language model."),
    again: Path | None = typer.Option(
        None,
        help="A picture to make again, also one of another program (PNG, JPEG or WebP); what else "
        "is given changes it.",
    ),
    start: Path | None = typer.Option(
        None, help="A picture to begin from; --strength says how much of it is drawn anew."
    ),
    mask: Path | None = typer.Option(
        None, help="Where the start picture is drawn anew: light in a picture of its shape."
    ),
    output: Path = typer.Option(Path("outputs"), help="The folder of pictures."),
    model: str = typer.Option(
        options.TOYBOX,
        help="A folder, a checkpoint file or a hub name.",
        show_default="the toybox",
    ),
    vae: options.Vae = None,
    lora_dir: list[Path] = typer.Option(
        [options.LORA_FOLDER], help="A folder of LoRAs; repeatable.", show_default="the toybox's"
    ),
    partial: options.Partial = False,
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    lowvram: options.LowVram = False,
    dtype: str | None = typer.Option(None, help="auto, float32, float16 or bfloat16."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object for each picture."),
    **settings: Any,
) -> None:
    """Paint pictures with several LoRAs at once; print the files' paths."""
    from composer.fusions import PLAIN, Pin
    from composer.studio import ComposeRequest, Studio

    width, height = read_size(size)
    settings |= {"prompt": prompt, "width": width, "height": height}
    rows, pins = tuple(map(read_row, lora)), tuple(Pin.read(line) for line in pin if line.strip())
    studio = Studio(
        model,
        lora_dir,
        output,
        device=device,
        dtype=dtype,
        vae=vae,
        lowvram=lowvram,
        partial=partial,
        language_model=language_model,
        adapter=adapter,
    )
    recipe = _recipe(studio, fusion if _is_given(context, "fusion") else "", gates, mixlora)
    options_of = {"width": "size", "height": "size"} | options_by_name(Request)
    if again is None:
        asked = ComposeRequest(
            request=Request(**settings), rows=rows, recipe=recipe or PLAIN[0], pins=pins
        )
        asked = studio.settled(asked, [n for n in settings if _is_given(context, options_of[n])])
    else:
        studio.wait()
        recalled = studio.recall(studio.history.read(again))
        for note in recalled.notes:
            typer.secho(note, fg=typer.colors.YELLOW, err=True)
        given = {n: value for n, value in settings.items() if _is_given(context, options_of[n])}
        asked = replace(recalled.asked, request=replace(recalled.asked.request, **given))
        if recipe is not None and recipe != asked.recipe:
            asked = asked.with_recipe(recipe, pins=asked.recipe.pins_for(recipe, asked.pins))
        asked = replace(asked.with_rows(rows), pins=pins if pin else asked.pins)
    if expand:
        said, number = asked.request.prompt, max(asked.request.seed, 0)
        whole = studio.triggers(asked.recipe)
        words = studio.wording.expand(said, studio.active(asked), whole=whole, seed=number)
        asked = replace(asked, request=replace(asked.request, prompt=words))
    begun = _read_start(start, mask)
    pictures = follow(studio.compose(replace(asked, gate_map=gate_map, start=begun)))
    for picture in pictures:
        typer.echo(json.dumps(_told(picture)) if as_json else str(picture.path))


def _read_start(start: Path | None, mask: Path | None) -> Start | None:
    """The picture to begin from, if one was given.

    Raises:
        ComposerError: a file is no picture, or there is a mask alone.
    """
    from composer.diffusion.png import READABLE, open_png

    if start is None:
        if mask is not None:
            raise ComposerError(f"--mask {mask} is for a start picture: give it by --start.")
        return None
    pictures: list[Image.Image] = []
    for path in (start, mask):
        if path is not None:
            with open_png(path, READABLE) as image:
                pictures.append(image.convert("RGB" if path == start else "L"))
    return Start(image=pictures[0], mask=pictures[1] if mask is not None else None)


def _recipe(studio: Studio, fusion: str, gates: str, mixlora: str) -> Recipe | None:
    """The one way of fusing that was asked for; None for none.

    Raises:
        ComposerError: several are, or a file is of another kind.
    """
    from composer.fusions import Gates, MixLora, read_recipe

    asked = {"--fusion": fusion, "--gates": gates, "--mixlora": mixlora}
    if len(given := [option for option, value in asked.items() if value]) > 1:
        raise ComposerError(f"{' and '.join(given)} are fusions of their own: give one, not both.")
    if fusion:
        return read_recipe(fusion)
    for recipe, name in ((Gates, gates), (MixLora, mixlora)):
        if name:
            lent = studio.lend(recipe, name) if Path(name).is_file() else name
            return recipe(file=lent)
    return None


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def follow(events: Iterable[Event]) -> tuple[SavedPicture, ...]:
    """Show progress on the error stream until the pictures are there."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress as Bar, TextColumn

    from composer.studio import Finished, Progress, Started

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Loading the model", total=None, left="")
        for event in events:
            if isinstance(event, Started):
                bar.update(task, description=" + ".join(event.loras) or "no LoRA")
                for note in event.notes:
                    console.print(note, style="yellow", markup=False)
            elif isinstance(event, Progress):
                words = f"step {event.step}/{event.steps}, {left(event.seconds_left)}"
                bar.update(task, completed=event.step, total=event.steps, left=words)
            elif isinstance(event, Finished):
                return event.pictures
    return ()


def _told(picture: SavedPicture) -> dict[str, Any]:
    """What a program wants to know of a picture."""
    return {"path": str(picture.path), **json.loads(picture.record.to_json())}


def read_row(text: str) -> LoraRow:
    """The row of one --lora; ComposerError where it is not written as its help says."""
    from composer.fusions import LoraRow

    marked = _PLACED.fullmatch(text)
    what, drawn = marked.groups() if marked else (text, "")
    name, equals, weights = what.rpartition("=")
    if not equals:
        name, weights = what, "1"
    weights, *limits = re.split("([@^])", weights)
    place = _read_place(drawn) if drawn else None
    try:
        spans = _read_limits(limits)
        unet, *words = (float(weight) for weight in weights.split(","))
        (text_encoder,) = words or (None,)
    except ValueError as error:
        raise ComposerError(
            f"--lora {text!r} is not understood. Write --lora NAME=0.8, or --lora NAME=0.8,0.5 "
            "with the text encoder's weight after the comma; --lora NAME=1@0:0.5 for the first "
            "half of the steps, or NAME=1^0:0.2 for the first fifth of the depth."
        ) from error
    return LoraRow(name=name, weight=unet, text_encoder=text_encoder, place=place, **spans)


def _read_place(text: str) -> Place:
    """Of four numbers, "0:0:0.5:1", or a picture's path.

    Raises:
        ComposerError: it is neither.
    """
    from composer.diffusion.png import READABLE, open_png
    from composer.fusions.places import Place

    try:
        left, top, right, bottom = map(float, text.split(":"))
    except ValueError:
        pass
    else:
        return Place.rectangle(left, top, right, bottom)
    with open_png(Path(text), READABLE) as image:
        return Place.drawn(image)


def _read_limits(limits: list[str]) -> dict[str, Any]:
    """Of marks and spans in turn, "@", "0:0.5": what is limited, and from where to where.

    Raises:
        ValueError: a span is none, or a mark stands there twice.
    """
    spans: dict[str, Any] = {}
    for mark, span in zip(limits[::2], limits[1::2], strict=True):
        if _LIMITS[mark] in spans:
            raise ValueError(f"{mark} stands there twice")
        start, end = map(float, span.split(":"))
        spans[_LIMITS[mark]] = (start, end)
    return spans


def read_size(text: str) -> tuple[int | None, int | None]:
    """Width and height of "64x64"; None for both where nothing was given."""
    if not text:
        return None, None
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise ComposerError(f"--size {text!r} is not understood. Write it as 64x64.")
    return int(found[1]), int(found[2])
