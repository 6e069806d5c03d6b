"""The routes `/sdapi/v1/` of A1111's API, as far as they have a meaning here."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request as HttpRequest
from fastapi.responses import JSONResponse

from composer.api.calls import (
    SCRIPT,
    Call,
    is_in_force,
    model_title,
    options_of,
    read_call,
    texts_of,
)
from composer.api.guard import refusal
from composer.api.runs import Busy, Run, Runs, caller_of
from composer.diffusion.other_programs import PARAMETERS
from composer.diffusion.parameters import HIRES_UPSCALER, split_parameters, to_parameters
from composer.diffusion.png import record_of
from composer.diffusion.samplers import SAMPLERS, SCHEDULES
from composer.errors import ComposerError
from composer.outside import MAX_JSON, parse_object
from composer.studio import Status, Studio

MOUNTED = "/sdapi"
PATIENCE = 60.0  # seconds that a call waits for the model to be loaded
_EMPTY = (
    "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles",
    "latent-upscale-modes", "extensions",
)  # fmt: skip
"""What A1111 lists and Composer has none of."""

log = logging.getLogger("composer")


class Unready(ComposerError):
    """The model is not loaded."""


def sd_api(studio: Studio, runs: Runs) -> FastAPI:
    """An app with the routes, to be mounted at MOUNTED. It is guarded by whoever mounts it."""
    app = FastAPI(title="Composer", docs_url=None, redoc_url=None, openapi_url=None)
    routes = Routes(studio, runs)
    gets: dict[str, Callable[..., Any]] = {
        "progress": routes.progress,
        "options": routes.options,
        "cmd-flags": routes.nothing,
        "samplers": routes.samplers,
        "schedulers": routes.schedulers,
        "loras": routes.loras,
        "embeddings": routes.embeddings,
        "sd-models": routes.models,
        "sd-vae": routes.vaes,
        "upscalers": routes.upscalers,
        "scripts": routes.scripts,
        "script-info": routes.script_info,
        **dict.fromkeys(_EMPTY, routes.none),
    }
    posts: dict[str, Callable[..., Any]] = {
        "txt2img": routes.txt2img,
        "img2img": routes.img2img,
        "interrupt": routes.interrupt,
        "png-info": routes.png_info,
        "options": routes.set_options,
        "refresh-loras": routes.refresh,
        "refresh-checkpoints": routes.nothing,
        "refresh-vae": routes.nothing,
    }
    for methods, known in (("GET", gets), ("POST", posts)):
        for name, action in known.items():
            app.add_api_route(f"/v1/{name}", action, methods=[methods], response_model=None)
    app.add_api_route("/{path:path}", routes.unknown, methods=["GET", "POST"], response_model=None)
    for kind in (ComposerError, Exception):
        app.add_exception_handler(kind, _failed)
    return app


class Routes:
    """What the routes do. They keep nothing: the studio does, and the calls that are at work."""

    def __init__(self, studio: Studio, runs: Runs) -> None:
        self._studio = studio
        self._runs = runs

    # --- pictures

    async def txt2img(self, request: HttpRequest) -> Any:
        """Pictures of a prompt."""
        return await self._paint(request, from_picture=False)

    async def img2img(self, request: HttpRequest) -> Any:
        """Pictures that begin from another."""
        return await self._paint(request, from_picture=True)

    async def _paint(self, request: HttpRequest, *, from_picture: bool) -> Any:
        payload = await _body(request)
        status = await self._ready()
        call = await _thread(read_call, payload, status, from_picture=from_picture)
        run = await self._runs.follow(
            caller_of(request),
            lambda owner: self._studio.compose(
                self._studio.settled(call.asked, call.given), owner=owner
            ),
            gone=request.is_disconnected,
        )
        return await _thread(_answer, payload, call, run, status)

    async def interrupt(self, request: HttpRequest) -> Any:
        """Stop the jobs of whoever calls, within one step."""
        self._runs.interrupt(caller_of(request))
        return {}

    async def progress(self, request: HttpRequest, skip_current_image: bool = False) -> Any:
        """How far the oldest job of whoever calls is."""
        runs = self._runs.of(caller_of(request))
        state: dict[str, Any] = {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "",
            "job_count": len(runs),
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        }
        answer: dict[str, Any] = {"progress": 0.0, "eta_relative": 0.0, "state": state}
        answer |= {"current_image": None, "textinfo": None}
        if not runs:
            return answer
        state["interrupted"] = runs[0].stopped
        now, preview = runs[0].progress, runs[0].preview
        if now is None:
            return answer | {"textinfo": "Waiting"}
        state["job"] = f"Picture {now.pictures.start + 1} of {now.count}"
        state |= {"sampling_step": now.step, "sampling_steps": now.steps}
        answer |= {"progress": now.step / now.steps, "eta_relative": now.seconds_left or 0.0}
        if preview is not None and not skip_current_image:
            answer["current_image"] = _encoded(preview)
        return answer

    async def png_info(self, request: HttpRequest) -> Any:
        """What a picture says of itself, of other programs too."""
        payload = await _body(request)
        return await _thread(_png_info, payload.get("image"))

    # --- what there is

    async def options(self) -> Any:
        """What A1111's options are here."""
        return options_of(await self._ready())

    async def set_options(self, request: HttpRequest) -> None:
        """Accept options that are in force already, and refuse all others by name."""
        asked = await _body(request)
        status = await self._ready()
        others = [name for name, value in asked.items() if not is_in_force(name, value, status)]
        if others:
            raise ComposerError(
                f"{', '.join(name[:80] for name in others)}: options cannot be changed by a call, "
                "for they would hold for all others. The model and its VAE are chosen when "
                "Composer is started; CLIP_stop_at_last_layers may stand in the "
                "override_settings of a picture."
            )

    async def models(self) -> Any:
        """The one model that is loaded."""
        status = await self._ready()
        return [
            {
                "title": model_title(status),
                "model_name": status.model,
                "hash": status.model_hash[:10],
                "sha256": status.model_hash,
                "filename": status.model,
                "config": None,
            }
        ]

    async def vaes(self) -> Any:
        """The VAE in place of the model's, if there is one."""
        status = await self._ready()
        return [{"model_name": status.vae, "filename": status.vae}] if status.vae else []

    def loras(self) -> Any:
        """The LoRAs that can be used."""
        return [
            {
                "name": card.name,
                "alias": card.name,
                "path": card.path.name,
                "metadata": {
                    "modelspec.title": card.info.title,
                    "modelspec.description": card.info.description,
                    "modelspec.trigger_phrase": card.info.trigger,
                    "composer.role": card.info.role,
                    "composer.weight": card.info.weight,
                },
            }
            for card in self._studio.cards()
            if card.error is None
        ]

    def refresh(self) -> Any:
        """Look into the LoRA folders again."""
        self._studio.cards(refresh=True)
        return {}

    def embeddings(self) -> Any:
        """The words of textual inversion, by whether they can be used."""
        loaded: dict[str, Any] = {}
        for card in self._studio.libraries.embeddings.scan():
            if card.facts:
                count, width = next(iter(card.facts.values()))
                own = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
                loaded[card.name] = {**own, "shape": width, "vectors": count}
        return {"loaded": loaded, "skipped": {}}

    def samplers(self) -> Any:
        """The samplers, by A1111's names."""
        return [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS]

    def schedulers(self) -> Any:
        """The schedules, by A1111's names."""
        return [
            {
                "name": label.lower().replace(" ", "_"),
                "label": label,
                "aliases": None,
                "default_rho": -1,
                "need_inner_model": False,
            }
            for label in SCHEDULES
        ]

    def upscalers(self) -> Any:
        """What enlarges a picture for its second pass."""
        none = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
        return [{"name": name, **none} for name in ("None", HIRES_UPSCALER)]

    def scripts(self) -> Any:
        """The always-on scripts: the one that says how LoRAs are fused."""
        return {"txt2img": [SCRIPT], "img2img": [SCRIPT]}

    def script_info(self) -> Any:
        """The same, with its arguments."""
        arguments = [{"label": "Fusion", "value": "weighted"}, {"label": "Pins", "value": ""}]
        about = {"name": SCRIPT, "is_alwayson": True, "args": arguments}
        return [{**about, "is_img2img": is_img2img} for is_img2img in (False, True)]

    def none(self) -> Any:
        """Of these there are none here."""
        return []

    def nothing(self) -> Any:
        """There is nothing to tell, or to do."""
        return {}

    def unknown(self, request: HttpRequest) -> Any:
        """A route that A1111 may have and Composer has not."""
        detail = f"Composer has no {request.method} {request.url.path[:200]}."
        return JSONResponse(refusal("NotFound", detail), 404)

    async def _ready(self) -> Status:
        """The loaded model; waits for it.

        Raises:
            Unready: it is not there in time, or not at all.
        """
        status = await _thread(self._studio.wait, PATIENCE)
        if status.state != "ready":
            raise Unready(status.message)
        return status


async def _thread(work: Callable[..., Any], *values: Any, **options: Any) -> Any:
    return await anyio.to_thread.run_sync(partial(work, *values, **options))


async def _body(request: HttpRequest) -> dict[str, Any]:
    """The JSON object that a call brings.

    Raises:
        ComposerError: it is something else, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # browsers send this only where they are let
        raise ComposerError("Send JSON, with the header Content-Type: application/json.")
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > MAX_JSON:
            raise ComposerError(f"The call is larger than {MAX_JSON // 2**20} MB: send less.")
    try:
        return await _thread(parse_object, bytes(content))
    except ValueError as error:
        raise ComposerError(f"The call's JSON cannot be read: {error}.") from None


def _answer(payload: Mapping[str, Any], call: Call, run: Run, status: Status) -> dict[str, Any]:
    """The pictures of a call as A1111 gives them: each PNG holds its recipe."""
    request, records = call.asked.request, [saved.record for saved in run.pictures]
    warnings = [*call.warnings, *run.notes]
    if run.over.cancelled:
        warnings.append(f"Interrupted: {len(records)} of {request.count} pictures were finished.")
    one = records[0].request if records else request
    seeds = [record.request.seed for record in records]
    info: dict[str, Any] = {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(records),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(records),
        "seed": one.seed,
        "all_seeds": seeds,
        "subseed": one.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": one.width,
        "height": one.height,
        "sampler_name": one.sampler,
        "cfg_scale": one.cfg_scale,
        "steps": one.steps,
        "batch_size": len(records),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": status.model,
        "sd_model_hash": status.model_hash[:10],
        "sd_vae_name": status.vae or None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": one.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [to_parameters(record) for record in records],
        "styles": [],
        "job_timestamp": "0",
        "clip_skip": one.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": f"composer {records[0].version}" if records else "composer",
        "warnings": warnings,
    }
    images = [saved.path.read_bytes() for saved in run.pictures] if call.send_images else []
    echoed = dict(payload)
    if not echoed.get("include_init_images"):
        echoed |= {name: None for name in ("init_images", "mask") if name in echoed}
    return {
        "images": [base64.b64encode(image).decode() for image in images],
        "parameters": echoed,
        "info": json.dumps(info),
        "warnings": warnings,
    }


def _png_info(image: object) -> dict[str, Any]:
    """What a picture says: as A1111's text, its other texts, and the pairs of the former.

    `warnings` say what Composer cannot make again of it.
    """
    called = "The picture"
    texts = texts_of(image, called)
    info, warnings, parameters = texts.pop(PARAMETERS, ""), list[str](), dict[str, Any]()
    try:
        record = record_of({PARAMETERS: info, **texts} if info else texts, called)
    except ComposerError as error:
        warnings.append(str(error))
    else:
        warnings += record.notes
        info = info or to_parameters(record)
    try:
        prompt, negative, pairs = split_parameters(info)
    except ComposerError:  # that is among the warnings
        pass
    else:
        parameters = {"Prompt": prompt, "Negative prompt": negative, **pairs}
        width, _, height = pairs.get("Size", "").partition("x")
        if height:
            parameters |= {"Size-1": width, "Size-2": height}
    return {"info": info, "items": texts, "parameters": parameters, "warnings": warnings}


def _encoded(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def _failed(request: HttpRequest, error: Exception) -> JSONResponse:
    """An error as A1111 words it; one that was not expected goes to the log, too."""
    if isinstance(error, ComposerError):
        status = 503 if isinstance(error, Busy | Unready) else 422
        return JSONResponse(refusal(type(error).__name__, str(error)), status)
    log.error("a call failed", exc_info=error)
    detail = f"{type(error).__name__}: {error}. The log has the whole story."
    return JSONResponse(refusal(type(error).__name__, detail), 500)
