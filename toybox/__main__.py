"""`python -m toybox`: build the model again, or look at its world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from composer.cli import Commands

app = typer.Typer(
    cls=Commands,
    help="The shipped model: build it again, look at its world.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.command()
def build(
    work: Annotated[Path, typer.Option(help="Checkpoints, logs and sample grids.")] = Path(
        "runs/toybox"
    ),
    out: Annotated[Path, typer.Option(help="The model folder to write.")] = Path("assets/toybox"),
    loras: Annotated[Path, typer.Option(help="Where the LoRAs go.")] = Path("loras"),
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; give it several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    scale: Annotated[float, typer.Option(help="All time budgets times this.")] = 1.0,
    start: Annotated[
        Path | None, typer.Option(help="A model folder whose weights the stages begin with.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Make every file of the model again. Stop it at any time; it goes on from there."""
    from toybox.recipe import STAGES, Build, run

    wanted = Build(
        work=work, out=out, loras=loras, device=device, scale=scale, start=start, seed=seed
    )
    run(wanted, stage or STAGES)


@app.command()
def sprites(font: Annotated[Path, typer.Argument(help="NotoColorEmoji.ttf.")]) -> None:
    """Cut the sprite sheet again from an installed font."""
    from toybox.sprites import SHEET, build_sheet

    build_sheet(font)
    typer.echo(f"wrote {SHEET}")


@app.command()
def world(
    path: Annotated[Path, typer.Argument(help="The picture to write.")],
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
) -> None:
    """Draw a sheet of the world's scenes, LoRA-only elements among them."""
    from toybox.sheet import draw_sheet

    draw_sheet(path, seed=seed)
    typer.echo(f"wrote {path}")


if __name__ == "__main__":
    app(prog_name="python -m toybox")
