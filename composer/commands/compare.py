"""`composer compare`: a grid of pictures, scored, as a folder with a page that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from composer.commands import _options as options
from composer.commands._settings import with_settings
from composer.commands.generate import follow, read_row, read_size
from composer.diffusion.request import Request
from composer.errors import ComposerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from composer.studio import ComposeRequest, Event, Studio


@with_settings(Request, cfg_scale=3.0, seed=0)
def compare(
    prompt: str = typer.Argument(..., help="What to paint; may hold tags, <lora:name:0.8>."),
    output: Path = typer.Option(
        ..., "--output", "-o", help="A folder; pictures that are there already are kept."
    ),
    lora: list[str] = typer.Option([], help="NAME=WEIGHT, as for `composer generate`."),
    x: str = typer.Option(
        "",
        help="What runs across, NAME=VALUE,VALUE (| between values that hold commas): seed, steps, "
        "cfg, sampler, prompt; lora:NAME for weights; a parameter of the fusion; or way of fusing, "
        "way=bare|alone:zibo|weighted|ties:density=0.3, by the names in docs/methods.md. Without "
        "any axis: the usual ways across, seeds down.",
    ),
    y: str = typer.Option("", help="What runs down, likewise."),
    z: str = typer.Option("", help="And a third, likewise: grid below grid."),
    size: str = typer.Option("", help="WIDTHxHEIGHT in pixels; the model's own unless given."),
    scores: bool = typer.Option(
        True, help="Say how well each LoRA recognises its hand in each picture."
    ),
    clip: str = typer.Option(
        "",
        help="A CLIP of transformers, folder or hub name, for CLIP-T and CLIP-I. (CLIP-T does not "
        "agree with people on composition.)",
    ),
    dino: str = typer.Option(
        "",
        help="A DINO likewise: DINO and CLIP-I compare with what each LoRA paints alone in the "
        "grid.",
    ),
    reference: list[str] = typer.Option(
        [],
        help="NAME=FOLDER: pictures of what the LoRA NAME teaches; CLIP-I and DINO then compare "
        "with these, the whole picture and its best crop; repeatable.",
    ),
    model: str = typer.Option(
        options.TOYBOX,
        help="A folder, a checkpoint file or a hub name.",
        show_default="the toybox",
    ),
    lora_dir: list[Path] = typer.Option(
        [options.LORA_FOLDER], help="A folder of LoRAs; repeatable.", show_default="the toybox's"
    ),
    partial: options.Partial = False,
    vae: options.Vae = None,
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    dtype: str | None = typer.Option(None, help="float32, float16 or bfloat16."),
    lowvram: options.LowVram = False,
    **settings: Any,
) -> None:
    """Compare ways of fusing, weights, seeds and settings side by side; print the files' paths.

    Stopped and begun again with the same folder, it goes on where it was.
    """
    from composer.evaluation.report import write_report
    from composer.studio import ComposeRequest, Studio
    from composer.studio.axes import cells_of, read_axis
    from composer.studio.grid import Filled, GridFolder
    from composer.studio.grid_report import report_of

    references = dict(map(_read_reference, reference))
    width, height = read_size(size)
    count = settings.pop("count")
    request = Request(**settings, prompt=prompt, width=width, height=height).drawn()
    asked = ComposeRequest(request=request, rows=tuple(map(read_row, lora)))
    studio = Studio(
        model,
        lora_dir,
        output,
        device=device,
        dtype=dtype,
        vae=vae,
        lowvram=lowvram,
        partial=partial,
    )
    axes = [read_axis(text) for text in (z, y, x) if text]
    if not axes:
        seeds = ",".join(str(request.seed + number) for number in range(max(count, 2)))
        axes = [read_axis(f"seed={seeds}"), read_axis(f"way={'|'.join(usual(studio, asked))}")]
    cells = cells_of(asked, axes)
    filled: dict[int, Filled] = {}

    def gathered(events: Iterable[Event | Filled]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Filled):
                filled[event.cell] = event
            else:
                yield event

    events = studio.grid(
        cells, GridFolder(output), scored=scores, clip=clip, dino=dino, references=references
    )
    follow(gathered(events))
    for path in write_report(output, report_of(prompt, axes, cells, filled, folder="pictures/")):
        typer.echo(str(path))


def _read_reference(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not (name.strip() and folder.strip()):
        raise ComposerError(
            f"--reference {text!r} is not understood: write NAME=FOLDER, as in zibo=photos/zibo."
        )
    return name.strip(), Path(folder.strip())


def usual(studio: Studio, asked: ComposeRequest) -> list[str]:
    """The model by itself, each LoRA alone, the usual ways, and what gates there are."""
    from composer.fusions import PLAIN
    from composer.studio.axes import ALONE, BARE

    studio.wait()
    names = [studio.card(row.name).name for row in asked.rows if row.active]
    ways = [BARE, *(f"{ALONE}:{name}" for name in names)]
    ways += [recipe.key for recipe in PLAIN if recipe.usual] if len(names) > 1 else []
    return ways + [o.recipe.key for o in studio.offers()[0] if o.fits(names) and not o.instead]
