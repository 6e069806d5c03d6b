from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_views import EVIL, card

from composer.errors import ComposerError
from composer.studio import Point, Preview, Training, TrainingRequest
from composer.ui import train_views as views

REQUEST = TrainingRequest(
    name="both",
    loras=("zibo", "neon"),
    prompts=("zibo in neon",),
    alone={"zibo": ("zibo",), "neon": ("neon",)},
)
CARDS = {"zibo": card("zibo", "character", trigger="zibo fox"), "neon": card("neon", "style")}


def at(step: int, **losses: float) -> Point:
    return Point(step=step, losses={"loss": 1 / step, **losses}, entropy=0.5)


def running(**changes: Any) -> Training:
    values = {"state": "running", "stage": "train", "step": 30, "total": 200, **changes}
    return Training(request=REQUEST, **values)


def test_a_request_is_a_training_with_previews_and_states() -> None:
    config = dataclasses.replace(REQUEST, paper=True, steps=30).config(Path("x.safetensors"))
    assert (config.output, config.paper, config.steps) == (Path("x.safetensors"), True, 30)
    assert (config.preview_every, config.checkpoint_every, config.resume) == (5, 25, False)
    assert config.prompts == REQUEST.prompts and config.alone == REQUEST.alone


def test_a_request_survives_the_disk() -> None:
    told = json.loads(json.dumps(REQUEST.to_json()))
    assert TrainingRequest.from_json(told) == REQUEST
    for wrong, message in (
        ({}, "settings lack loras, name"),
        ({**told, "colour": 1}, "Unknown training settings colour"),
        ({**told, "alone": 3}, "alone is 3"),
    ):
        with pytest.raises(ComposerError, match=message):
            TrainingRequest.from_json(wrong)


OLD = {
    "neutral": ["cat"], "reduce": "grid", "normalise": "layer", "activation": "sigmoid",
    "time": True, "bias": True, "top_k": 0, "text_encoder": False, "objective": "distill",
    "teacher": "regions", "keep": 0.0, "rest": 0.0, "familiar": 0.0, "near": 0.3, "balance": 0.0,
    "router_balance": 0.0, "start": "sum", "trajectories": 40, "teacher_steps": 12,
    "input": "regions", "company": "everybody", "clip": "",
}  # fmt: skip


def test_a_training_of_before_is_shown_and_cannot_go_on() -> None:
    """It was begun when there were settings that there are no more."""
    told = json.loads(json.dumps(REQUEST.to_json())) | OLD
    del told["paper"], told["dropped"], told["output"], told["accumulation"]
    read = TrainingRequest.from_json(told)
    assert (read.name, read.loras, read.prompts) == (REQUEST.name, REQUEST.loras, REQUEST.prompts)
    assert TrainingRequest.from_json(read.to_json()) == read
    with pytest.raises(ComposerError, match=r"objective.*forget it, and train again"):
        read.config(Path("x.safetensors"), resume=True)


def test_a_running_training_is_told_in_words_and_curves() -> None:
    history = tuple(at(step, neon=0.25, zibo=0.75) for step in range(1, 31))
    view = views.training_view(running(history=history, seconds_left=95.0), CARDS)
    assert (view["what"], view["left"]) == ("Step 30 of 200", "2 min left")
    assert [stage["fraction"] for stage in view["stages"]] == [1.0, 0.15]
    assert [stage["now"] for stage in view["stages"]] == [False, True]
    assert [curve["key"] for curve in view["curves"]] == ["loss", "zibo", "neon"]
    assert view["curves"][2] == {
        "key": "neon",
        "label": "neon",
        "role": "style",
        "main": False,
        "points": [[step, 0.25] for step in range(1, 31)],
    }
    assert view["entropy"][-1] == [30, 0.5]
    json.dumps(view)


@pytest.mark.parametrize(
    ("changes", "what", "message"),
    [
        ({"state": "waiting", "ahead": 2}, "Waits for 2 other trainings", ""),
        ({"stage": "prepare"}, "Getting ready", ""),
        ({"stage": "alone", "step": 3, "total": 9}, "Each LoRA draws alone · 3 of 9", ""),
        ({"gives_way": True}, "Waits while a picture is made", ""),
        ({"state": "stopping"}, "Stopping after this step", ""),
        ({"state": "stopped", "history": (at(30),)}, "Stopped at step 30 of 120", ""),
        ({"state": "failed", "message": "No."}, "It did not start", "No."),
        ({"skipped": 2}, "Step 30 of 200", "2 steps without a finite loss skipped."),
        (
            {"state": "finished", "history": (at(200),)},
            "Finished after 200 steps",
            "The gates “both” are ready in Compose.",
        ),
    ],
)
def test_what_happens_is_told(changes: dict[str, Any], what: str, message: str) -> None:
    view = views.training_view(running(**changes), CARDS)
    assert (view["what"], view["message"]) == (what, message)


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    history = tuple(at(step) for step in range(1, 1002))
    points = views.training_view(running(history=history), CARDS)["curves"][0]["points"]
    assert len(points) <= views.MOST_POINTS + 1
    assert points[0][0] == 1 and points[-1][0] == 1001


def test_a_history_is_continued_where_it_was_resumed() -> None:
    training = running(history=tuple(at(step) for step in range(1, 31)))
    history = training.with_point(at(26))
    assert [point.step for point in history] == list(range(1, 27))


def test_a_lora_that_is_gone_keeps_its_name() -> None:
    view = views.training_view(running(), {})
    assert view["loras"] == [{"title": "zibo", "role": "other"}, {"title": "neon", "role": "other"}]


def test_only_what_was_begun_can_be_continued() -> None:
    trainings = [
        running(state="failed", stage="prepare"),
        running(state="failed"),
        running(state="stopped", stage="prepare"),
        running(),
        running(state="finished"),
    ]
    rows = views.trainings_view(trainings, CARDS, "both")["rows"]
    assert [row["resumes"] for row in rows] == [False, True, True, False, False]
    assert [row["forgets"] for row in rows] == [True, True, True, False, True]


def test_previews_are_shown_and_those_that_went_are_not(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.webp")
    shown = (Preview(step=10, path=tmp_path / "a.webp"), Preview(step=20, path=tmp_path / "b.webp"))
    view = views.previews_view(running(previews=shown))
    assert view["prompt"] == "zibo in neon"
    assert view["pictures"][0]["src"].startswith("data:image/webp;base64,")
    assert view["pictures"][1]["src"] == ""


def test_prompts_come_back_from_the_browser() -> None:
    line = views.lora_line(card(EVIL, "style", trigger=EVIL))
    chosen = views.no_prompts([line])
    assert views.read_prompts(chosen) == chosen
    assert views.read_prompts(None) == views.no_prompts()
    for wrong in (
        "prompts",
        {"turn": 0},
        {**chosen, "loras": [{"name": "a"}]},
        [1],
        {**chosen, "turn": 2.7},
    ):
        with pytest.raises(ComposerError, match="Reload the page"):
            views.read_prompts(wrong)


def test_what_the_user_wrote_is_kept_when_prompts_are_drafted_anew() -> None:
    drafted = views.redrafted({"text": "", "drafted": ""}, ["a", "b"])
    assert drafted == {"text": "a\nb", "drafted": "a\nb"}
    assert views.redrafted(drafted, ["c"])["text"] == "c"
    assert views.redrafted({**drafted, "text": "mine"}, ["c"]) == {"text": "mine", "drafted": "c"}
    assert views.redrafted({**drafted, "text": " "}, ["c"])["text"] == "c"
    assert views.lines(" a \n\nb\na") == ("a", "b")
