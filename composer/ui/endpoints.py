"""The main jobs as named endpoints of Gradio's API, which are tools for agents too (`--mcp`)."""

# Gradio reads the types of these functions as they are, so they must not be texts here: there is no
# `from __future__ import annotations`.
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio import events
from gradio.data_classes import FileData
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from composer.api import Run, Runs, caller_of
from composer.diffusion.parameters import to_parameters
from composer.diffusion.request import RANDOM_SEED, Request
from composer.errors import ComposerError
from composer.fusions import PLAIN, read_recipe
from composer.studio import Comparison, ComposeRequest, Studio
from composer.studio.axes import cells_of, read_axis
from composer.studio.comparing import cells_of_ways
from composer.studio.grid_report import report_of
from composer.ui.layout import USUAL_CFG

ENDPOINTS = ("generate", "compare", "list_loras", "list_fusions", "interrupt")
"""Their names."""


def add(blocks: gr.Blocks, studio: Studio, runs: Runs) -> None:
    """Add the endpoints to the Blocks, which are open."""

    def kept(content: bytes, name: str) -> FileData:
        """A picture where callers can fetch it, until the cache is emptied."""
        path = save_bytes_to_cache(content, name, get_upload_folder())
        files: Any = blocks
        files.upload_file_set.add(path)
        return FileData(path=path, orig_name=name, mime_type="image/png", size=len(content))

    def asked_for(fusion: str, **settings: Any) -> ComposeRequest:
        given: dict[str, Any] = {n: value for n, value in settings.items() if value is not None}
        wanted: dict[str, Any] = {"cfg_scale": USUAL_CFG, **given}
        recipe = read_recipe(fusion)
        asked = ComposeRequest(request=Request(**wanted), recipe=recipe, gate_map=recipe.gated)
        return studio.settled(asked, given.keys())

    async def followed(request: gr.Request, begin: Callable[[str], Any]) -> Run:
        try:
            return await runs.follow(caller_of(request), begin)
        except ComposerError as error:
            raise gr.Error(str(error), print_exception=False) from error

    async def generate(
        request: gr.Request,
        prompt: str,
        negative_prompt: str = "",
        fusion: str = PLAIN[0].key,
        seed: int = RANDOM_SEED,
        steps: int | None = None,
        cfg_scale: float | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> tuple[FileData, dict[str, Any]]:
        """
        Paint one picture with any number of LoRAs. The prompt names them by tags,
        <lora:NAME:WEIGHT>, with names of list_loras; their trigger words should stand in it too.

        Args:
            prompt: What to paint, with a tag for each LoRA.
            negative_prompt: What to keep out.
            fusion: How the LoRAs are fused, by a key of list_fusions.
            seed: A whole number; the same one gives the same picture. -1 draws one.
            steps: How many denoising steps, 20 unless given.
            cfg_scale: How closely to follow the prompt, 1 to 50; 3 to 8 is usual.
            sampler: By its A1111 name, such as Euler a.
            schedule: Where the steps are, such as Karras.
            width: In pixels, the model's own unless given.
            height: In pixels, the model's own unless given.

        Returns:
            The picture, and its seed, its settings as A1111 writes them, and warnings.
        """

        def begin(owner: str) -> Any:
            asked = asked_for(
                fusion,
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=seed,
                steps=steps,
                cfg_scale=cfg_scale,
                sampler=sampler,
                schedule=schedule,
                width=width,
                height=height,
            )
            return studio.compose(asked, owner=owner)

        run = await followed(request, begin)
        if not run.pictures:
            raise gr.Error("The picture was interrupted.", print_exception=False)
        (saved,) = run.pictures
        told = {
            "seed": saved.record.request.seed,
            "parameters": to_parameters(saved.record),
            "warnings": list(run.notes),
        }
        return kept(saved.path.read_bytes(), saved.path.name), told

    async def compare(
        request: gr.Request,
        prompt: str,
        ways: list[str] | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        seeds: int = 1,
        steps: int | None = None,
        cfg_scale: float | None = None,
        scores: bool = True,
    ) -> tuple[FileData, dict[str, Any]]:
        """
        Paint the same prompt and seeds by several ways of fusing its LoRAs, side by side. Ways are
        keys of list_fusions; bare, the model by itself; and alone:NAME, one LoRA.

        Args:
            prompt: What to paint, with tags for the LoRAs: <lora:NAME:WEIGHT>.
            ways: The ways of fusing, the usual ones unless given.
            negative_prompt: What to keep out.
            seed: The first seed.
            seeds: How many seeds, counted up from the first.
            steps: How many denoising steps, 20 unless given.
            cfg_scale: How closely to follow the prompt.
            scores: Whether each LoRA says how well it recognises its hand in each picture.

        Returns:
            A picture of the grid, one column for each way, and the scores.
        """
        grid: list[Any] = []

        def begin(owner: str) -> Any:
            request = asked_for(
                PLAIN[0].key,
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=seed,
                count=seeds,
                steps=steps,
                cfg_scale=cfg_scale,
            )
            asked = request.merged(lambda name: studio.card(name).name)
            asked = replace(asked, request=asked.request.drawn())
            if ways:
                first, many = asked.request.seed, asked.request.count
                axes = (
                    read_axis(f"seed={','.join(str(first + each) for each in range(many))}"),
                    read_axis(f"way={'|'.join(ways)}"),
                )
                cells = cells_of(asked, axes)
            else:
                studio.wait()
                comparison = Comparison(request=asked.request, rows=asked.rows)
                axes, cells = cells_of_ways(studio.ways(comparison), ())
            grid[:] = axes, cells
            return studio.grid(cells, scored=scores, owner=owner)

        run = await followed(request, begin)
        axes, cells = grid
        if not run.others:
            raise gr.Error("The comparison was interrupted.", print_exception=False)
        filled = {one.cell: one for one in run.others}
        files = report_of(prompt, axes, cells, filled)
        told = json.loads(files["scores.json"])
        told["warnings"] = ["It was interrupted."] if run.over.cancelled else []
        return kept(files["grid.png"], "grid.png"), told

    def list_loras() -> list[dict[str, Any]]:
        """
        List the LoRAs that can be named in a prompt. The trigger words of one call what it has
        learned; its weight is the usual one.

        Returns:
            Of each LoRA its name, title, role, trigger words, weight and description.
        """
        return [
            {
                "name": card.name,
                "title": card.info.title or card.name,
                "role": card.info.role,
                "trigger": card.info.trigger,
                "weight": card.info.weight,
                "description": card.info.description,
            }
            for card in studio.cards(refresh=True)
            if card.error is None
        ]

    def list_fusions() -> list[dict[str, Any]]:
        """
        List the ways of fusing LoRAs. Parameters may follow a key: ties:density=0.3. Learned gates
        name the LoRAs that they are for.

        Returns:
            Of each way its key, title and description, and its parameters or its LoRAs.
        """
        plain = [
            {
                "key": recipe.key,
                "title": recipe.title,
                "description": recipe.description,
                "parameters": recipe.parameters,
            }
            for recipe in PLAIN
        ]
        own = [
            {
                "key": offer.recipe.key,
                "title": offer.title,
                "description": offer.description,
                "loras": list(offer.loras),
            }
            for offer in studio.offers()[0]
        ]
        return [*plain, *own]

    def interrupt(request: gr.Request) -> int:
        """
        Stop the pictures that were asked for from here, within one step.

        Returns:
            How many calls were stopped.
        """
        return runs.interrupt(caller_of(request))

    actions: tuple[Callable[..., Any], ...] = (
        generate, compare, list_loras, list_fusions, interrupt,
    )  # fmt: skip
    untyped: Any = events
    for action, name in zip(actions, ENDPOINTS, strict=True):
        # The studio has the queue that people see; here everybody gets in.
        untyped.api(action, api_name=name, queue=False, concurrency_limit=None)
