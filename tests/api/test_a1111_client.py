"""A client of A1111's API from PyPI against the running app."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from typing import Any

import pytest
import requests
from PIL import Image
from served_app import AUTH, Served
from studio_pictures import finished, pixels

from composer.diffusion.png import read_png
from composer.diffusion.request import Request, Start
from composer.diffusion.samplers import SAMPLERS, SCHEDULES
from composer.fusions import read_recipe
from composer.outside import MAX_JSON
from composer.studio import ComposeRequest

webuiapi: Any = pytest.importorskip("webuiapi")
PATIENCE = 60  # seconds
SMALL = {"width": 16, "height": 16, "steps": 3, "seed": 7}
LONG = {"width": 64, "height": 64, "steps": 500}


@pytest.fixture
def client(served: Served) -> Any:
    return webuiapi.WebUIApi(port=served.port, sampler="Euler a")


def request(prompt: str, **settings: Any) -> Request:
    """What the client asks for with SMALL, as the studio is asked."""
    values = {**SMALL, "sampler": "Euler a", "schedule": "Uniform", **settings}
    return Request(prompt=prompt, **values)


def begin_long(client: Any) -> tuple[threading.Thread, list[Any]]:
    """A picture that takes long, in a thread, and where its answer comes; it has begun."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.txt2img(prompt="fox", **LONG)))
    thread.start()
    wait_for(lambda: client.get_progress()["progress"] > 0)
    return thread, answers


def wait_for(true: Any) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.05)


# --- pictures


def test_pictures_of_a_prompt_are_those_of_the_studio(client: Any, served: Served) -> None:
    prompt = "a fox <lora:zibo:0.8>"
    made = client.txt2img(prompt=prompt, negative_prompt="fog", n_iter=2, **SMALL)
    assert made.json["warnings"] == []  # of all that the client sends besides
    assert made.info["all_seeds"] == [7, 8]
    for image, seed in zip(made.images, made.info["all_seeds"], strict=True):
        asked = request(prompt, negative_prompt="fog", seed=seed)
        assert image.tobytes() == pixels(served.studio, ComposeRequest(request=asked))
    bare = client.txt2img(prompt="a fox", negative_prompt="fog", **SMALL)
    assert bare.image.tobytes() != made.images[0].tobytes()


def test_a_picture_carries_its_recipe_and_is_in_the_history(client: Any, served: Served) -> None:
    made = client.txt2img(prompt="a fox <lora:neon:0.5>", **SMALL)
    content = base64.b64decode(made.json["images"][0])
    record = read_png(io.BytesIO(content))
    assert [(lora.name, lora.unet) for lora in record.loras] == [("neon", 0.5)]
    (newest,) = served.studio.history.recent(1)
    assert newest.path.read_bytes() == content
    assert made.info["infotexts"][0] == made.image.info["parameters"]
    unsent = client.txt2img(prompt="a fox", send_images=False, **SMALL)
    assert unsent.images == [] and unsent.info["all_seeds"] == [7]


def test_image_to_image_keeps_what_is_outside_of_the_mask(client: Any, served: Served) -> None:
    start = Image.effect_noise((16, 16), 90).convert("RGB")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    options = {"denoising_strength": 0.6, "mask_blur": 0, "inpaint_full_res": False}
    made = client.img2img(
        images=[start], mask_image=mask, prompt="a fox", inpainting_fill=1, **options, **SMALL
    )
    assert made.json["warnings"] == []
    asked = ComposeRequest(
        request=request("a fox", strength=0.6), start=Start(image=start, mask=mask)
    )
    assert made.image.tobytes() == pixels(served.studio, asked)
    left = (0, 0, 8, 16)
    assert made.image.crop(left).tobytes() == start.crop(left).tobytes()
    assert made.image.tobytes() != start.tobytes()
    inverted = client.img2img(
        images=[start], mask_image=mask, inpainting_mask_invert=1, prompt="a fox",
        inpainting_fill=1, **options, **SMALL,
    )  # fmt: skip
    assert inverted.image.crop((8, 0, 16, 16)).tobytes() == start.crop((8, 0, 16, 16)).tobytes()


def test_a_second_pass_and_a_fusion(client: Any, served: Served) -> None:
    prompt = "a fox <lora:zibo:1> <lora:neon:1>"
    made = client.txt2img(
        prompt=prompt, enable_hr=True, hr_scale=2, hr_upscaler="Lanczos", denoising_strength=0.5,
        alwayson_scripts={"Composer": {"args": ["ties:density=0.4"]}}, **SMALL,
    )  # fmt: skip
    assert made.json["warnings"] == []
    asked = request(prompt, hires=2, strength=0.5)
    recipe = read_recipe("ties:density=0.4")
    expected = pixels(served.studio, ComposeRequest(request=asked, recipe=recipe))
    assert made.image.size == (32, 32) and made.image.tobytes() == expected


# --- progress, and stopping


def test_progress_is_told_and_interrupt_stops_within_a_step(client: Any, served: Served) -> None:
    idle = client.get_progress()
    assert idle["progress"] == 0 and idle["state"]["job_count"] == 0
    thread, answers = begin_long(client)
    state = client.get_progress()["state"]
    assert state["job_count"] == 1 and 0 < state["sampling_step"] < LONG["steps"]
    assert client.interrupt() == {}
    thread.join(PATIENCE)
    (stopped,) = answers
    assert stopped.images == []
    assert stopped.json["warnings"] == ["Interrupted: 0 of 1 pictures were finished."]
    client.util_wait_for_ready(0.1)
    assert not served.studio.queue


def test_others_pictures_are_neither_seen_nor_stopped(client: Any, served: Served) -> None:
    events = served.studio.compose(ComposeRequest(request=Request(steps=40)), owner="somebody")
    waiting = {line.owner for line in served.studio.queue}
    assert "somebody" in waiting
    assert client.get_progress()["state"]["job_count"] == 0
    client.interrupt()
    assert finished(events).pictures


def test_a_job_ends_when_its_caller_hangs_up(served: Served) -> None:
    body = json.dumps({"prompt": "fox", **LONG}).encode()
    head = (
        "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: composer\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: served.studio.queue)
    wait_for(lambda: not served.studio.queue)


# --- what there is


def test_what_there_is_is_listed(client: Any, served: Served) -> None:
    loras = {lora["name"]: lora for lora in client.get_loras()}
    assert loras.keys() == {"zibo", "neon"}
    assert loras["zibo"]["metadata"]["modelspec.trigger_phrase"] == "zibo"
    assert "/" not in loras["zibo"]["path"]
    assert client.util_get_sampler_names() == sorted(SAMPLERS)
    assert [each["label"] for each in client.get_schedulers()] == list(SCHEDULES)
    (model,) = client.get_sd_models()
    assert model["sha256"] == served.studio.status.model_hash
    assert client.util_get_current_model() == model["title"]
    assert client.get_scripts()["txt2img"] == ["Composer"]
    assert client.get_embeddings()["loaded"] == {}
    assert [each["name"] for each in client.get_upscalers()] == ["None", "Lanczos"]
    assert client.get_face_restorers() == client.get_prompt_styles() == []


def test_every_schedule_that_is_listed_can_be_given(client: Any) -> None:
    for schedule in client.util_get_scheduler_names():
        made = client.txt2img(prompt="a fox", scheduler=schedule, **SMALL | {"steps": 2})
        assert made.json["warnings"] == []


def test_only_options_that_are_in_force_are_accepted(client: Any) -> None:
    client.util_set_model(client.util_get_current_model())
    assert client.set_options({"CLIP_stop_at_last_layers": 1, "samples_format": "png"}) is None
    refused = client.set_options({"CLIP_stop_at_last_layers": 2, "face_restoration": True})
    assert refused["detail"].startswith("CLIP_stop_at_last_layers, face_restoration: ")
    assert "other" in client.set_options({"sd_model_checkpoint": "other.safetensors"})["detail"]


def test_a_picture_says_how_it_was_made(client: Any) -> None:
    made = client.txt2img(prompt="a fox, red <lora:zibo:0.8>", negative_prompt="fog", **SMALL)
    told = client.png_info(made.image)
    assert told.info == made.image.info["parameters"]
    expected = {"Prompt": "a fox, red <lora:zibo:0.8>", "Negative prompt": "fog", "Seed": "7"}
    assert expected.items() <= told.parameters.items()
    assert told.parameters["Size-1"] == "16"
    assert "composer" in told.json["items"]
    silent = client.png_info(Image.new("RGB", (4, 4)))
    assert silent.info == "" and silent.parameters == {}
    assert "does not say how it was made" in silent.json["warnings"][0]


# --- who may, and what is refused


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"sampler_name": "Eulr"}, "There is no sampler 'Eulr'. Did you mean 'Euler"),
        ({"prompt": "<lora:zibu:1>"}, "Did you mean 'zibo'"),
        ({"override_settings": {"sd_model_checkpoint": "dream"}}, "'dream', and 'tiny_sd"),
        ({"script_name": "X/Y/Z plot"}, "no script 'X/Y/Z plot'"),
        ({"steps": "many"}, "steps is 'many': give a whole number"),
        ({"width": 15}, "The nearest that fits"),
        ({"batch_size": 1000}, "The number of pictures is 1000"),
    ],
)
def test_what_cannot_be_is_refused(served: Served, body: dict[str, Any], said: str) -> None:
    answer = requests.post(f"{served.address}/sdapi/v1/txt2img", json=body, timeout=PATIENCE)
    assert answer.status_code == 422
    assert said in answer.json()["detail"] == answer.json()["errors"]


def test_a_page_of_another_site_may_not_call(served: Served) -> None:
    for headers, status in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": served.address}, 200),
        ({}, 200),
    ):
        url = f"{served.address}/sdapi/v1/interrupt"
        assert requests.post(url, headers=headers, timeout=PATIENCE).status_code == status
    # what a browser sends of any page without asking first
    plain = {"Content-Type": "text/plain"}
    run = f"{served.address}/gradio_api/run/interrupt"
    assert (
        requests.post(run, data='{"data": []}', headers=plain, timeout=PATIENCE).status_code >= 400
    )


def test_only_json_of_a_bounded_size_is_read(served: Served) -> None:
    url, kind = f"{served.address}/sdapi/v1/txt2img", {"Content-Type": "application/json"}
    for content, headers, said in (
        (b"{}", {"Content-Type": "text/plain"}, "application/json"),
        (b"{", kind, "cannot be read"),
        (b"[]", kind, "not a JSON object"),
        (b'"' + b"a" * MAX_JSON + b'"', kind, "larger than"),
    ):
        answer = requests.post(url, data=content, headers=headers, timeout=PATIENCE)
        assert answer.status_code == 422 and said in answer.json()["detail"]


def test_what_is_not_there_is_named(client: Any) -> None:
    assert client.skip()["detail"] == "Composer has no POST /sdapi/v1/skip."
    assert "no POST /sdapi/v1/interrogate" in requests.post(
        f"{client.baseurl}/interrogate", json={}, timeout=PATIENCE
    ).text  # fmt: skip


def test_with_a_password_only_who_knows_it_may_call(locked: Served) -> None:
    client = webuiapi.WebUIApi(port=locked.port, sampler="Euler a")
    paths = ("sdapi/v1/loras", "sdapi/v1/progress", "sdapi/v1/nothing")
    for auth in (None, ("ann", "sesame"), ("bob", AUTH[1]), ("ann", "")):
        for path in paths:
            answer = requests.get(f"{locked.address}/{path}", auth=auth, timeout=PATIENCE)
            assert answer.status_code == 401 and "Basic" in answer.headers["WWW-Authenticate"]
    with pytest.raises(RuntimeError, match="401"):
        client.txt2img(prompt="a fox", **SMALL)
    client.set_auth(*AUTH)
    assert client.txt2img(prompt="a fox", **SMALL).image.size == (16, 16)
