"""Trainings as jobs: they are seen, stopped, continued, forgotten, and give way to pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import write_clip
from tiny_loras import write_lora

from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts.hashes import tensor_hash_of
from composer.fusions import LoraRow
from composer.fusions.gate_file import read_gates
from composer.studio import (
    ComposeRequest,
    Finished,
    PictureSaved,
    Studio,
    Training,
    TrainingRequest,
    training_request,
    training_run,
)
from composer.studio.training_files import TrainingFiles
from composer.training.gates import sampling
from composer.training.gates.judges import Judged
from composer.training.gates.losses import Batch

SMALL: dict[str, Any] = {"steps": 6, "batch_size": 2}
LONG: dict[str, Any] = {**SMALL, "steps": 100_000}
SHORT: dict[str, Any] = {**SMALL, "steps": 1}
PATIENCE = 60


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """The LoRAs draw alone in three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "STEPS", 3)
        yield


def write_loras(folder: Path) -> Path:
    zibo = {"composer.role": "character", "modelspec.trigger_phrase": "zibo fox"}
    neon = {"composer.role": "style", "modelspec.trigger_phrase": "in neon style"}
    write_lora(folder / "zibo.safetensors", seed=1, **zibo)
    write_lora(folder / "neon.safetensors", seed=2, **neon)
    write_lora(folder / "foreign.safetensors", seed=4, width=768)
    return folder


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """LoRAs of this test alone, for finished gates are written beside them."""
    return write_loras(tmp_path / "loras")


@pytest.fixture(scope="module")
def whole(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Training]:
    """What is seen of a training that nothing disturbs, in a studio of its own."""
    root = tmp_path_factory.mktemp("whole")
    studio = Studio(tiny_sd, [write_loras(root / "loras")], root / "outputs")
    assert studio.trainings.start(asked("whole")).active
    return list(studio.trainings.follow("whole", every=0.01))


@pytest.fixture
def studio(tiny_sd: Path, loras: Path, tmp_path: Path) -> Iterator[Studio]:
    studio = Studio(tiny_sd, [loras], tmp_path / "outputs")
    yield studio
    for training in studio.trainings.all():
        if training.active:
            studio.trainings.stop(training.name)
    for training in studio.trainings.all():
        ended(studio, training.name)


def asked(name: str = "both", **settings: Any) -> TrainingRequest:
    values: dict[str, Any] = {
        "loras": ("zibo", "neon"),
        "prompts": ("zibo in neon",),
        "alone": {"zibo": ("zibo",), "neon": ("a cat in neon",)},
    }
    return TrainingRequest(name=name, **{**values, **SMALL, **settings})


def ended(studio: Studio, name: str) -> Training:
    return list(studio.trainings.follow(name))[-1]


def reach(studio: Studio, name: str, step: int) -> Training:
    for training in studio.trainings.follow(name, every=0.02):
        assert training.state != "failed", training.message
        if training.stage == "train" and training.step >= step:
            return training
    pytest.fail(f"it ended before step {step}")


def paint(studio: Studio) -> bytes:
    request = Request(prompt="a fox", seed=7, steps=3, width=16, height=16)
    rows = (LoraRow(name="zibo", weight=0.8), LoraRow(name="neon", weight=0.6))
    *_, before, last = studio.compose(ComposeRequest(request=request, rows=rows))
    assert isinstance(before, PictureSaved) and isinstance(last, Finished)
    return before.saved.image().tobytes()


def test_a_training_tells_how_it_goes_and_leaves_a_gate_file(whole: list[Training]) -> None:
    last = whole[-1]
    assert last.state == "finished", last.message
    assert last.path is not None and last.path.parts[-3:] == ("loras", "gates", "whole.safetensors")
    assert [point.step for point in last.history] == [1, 2, 3, 4, 5, 6]
    assert set(last.history[-1].losses) == {"loss", "zibo", "neon"}
    assert all(point.entropy is not None for point in last.history)
    assert [shown.step for shown in last.previews] == [1, 2, 3, 4, 5, 6]
    assert all(shown.path.is_file() for shown in last.previews)
    file = read_gates(last.path)
    assert [expert.name for expert in file.experts] == ["zibo", "neon"]
    loras = last.path.parents[1]
    file.check_experts({n: tensor_hash_of(loras / f"{n}.safetensors") for n in ("zibo", "neon")})
    assert file.training["steps"] == 6


def test_pictures_are_the_same_while_gates_are_trained(studio: Studio) -> None:
    before = paint(studio)
    studio.trainings.start(asked(**LONG))
    reach(studio, "both", 3)
    for _ in range(3):
        assert paint(studio) == before
    assert studio.trainings.get("both").state == "running"
    step = studio.trainings.get("both").step
    reach(studio, "both", step + 2)
    studio.trainings.stop("both")
    ended(studio, "both")
    assert paint(studio) == before


def test_no_step_is_made_while_a_picture_is(studio: Studio) -> None:
    studio.trainings.start(asked(**LONG))
    reach(studio, "both", 2)
    request = Request(prompt="a fox", seed=7, steps=60, width=16, height=16)
    steps: list[int] = []
    for event in studio.compose(ComposeRequest(request=request)):
        if isinstance(event, PictureSaved | Finished):
            break
        steps.append(studio.trainings.get("both").step)
        if len(steps) == 30:
            assert studio.trainings.get("both").gives_way
    assert len(set(steps[2:])) == 1
    reach(studio, "both", steps[-1] + 2)


def test_stopped_and_continued_it_ends_as_if_it_had_never_stopped(
    whole: list[Training],
    studio: Studio,
    tiny_sd: Path,
    loras: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = read_gates(whole[-1].path or tmp_path)
    asked_to_stop, real = threading.Event(), Judged.batch

    def held(self: Judged, number: int) -> Batch:
        if number == 3:  # the fourth step
            assert asked_to_stop.wait(PATIENCE)
        return real(self, number)

    monkeypatch.setattr(Judged, "batch", held)
    studio.trainings.start(asked("halves"))
    studio.trainings.start(asked("waits"))
    reach(studio, "halves", 3)
    for name in ("waits", "halves"):
        studio.trainings.stop(name)
    asked_to_stop.set()
    stopped = ended(studio, "halves")
    assert stopped.state == "stopped" and 3 <= stopped.step < 6
    assert not (loras / "gates" / "halves.safetensors").exists()

    # the app starts anew
    again = Studio(tiny_sd, [loras], tmp_path / "outputs")
    kept = again.trainings.get("halves")
    assert kept.state == "stopped" and kept.history == stopped.history
    assert {training.name for training in again.trainings.all()} == {"waits", "halves"}
    again.trainings.resume("halves")
    done = ended(again, "halves")
    assert done.state == "finished", done.message
    assert [point.step for point in done.history] == list(range(1, 7))
    made = read_gates(done.path or tmp_path)
    assert made.tensors.keys() == expected.tensors.keys()
    for unit, named in expected.tensors.items():
        for name, tensor in named.items():
            assert torch.equal(made.tensors[unit][name], tensor)
    assert not list((tmp_path / "outputs" / "trainings" / "halves").glob("*.resume"))


def test_an_app_that_was_killed_leaves_a_training_to_continue(
    studio: Studio, tiny_sd: Path, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (training_request, training_run):
        monkeypatch.setattr(module, "CHECKPOINT_EVERY", 3)
    studio.trainings.start(asked(**LONG))
    reach(studio, "both", 5)
    again = Studio(tiny_sd, [loras], tmp_path / "outputs")  # beside the one that still runs
    kept = again.trainings.get("both")
    assert kept.state == "stopped" and kept.trained >= 3


def test_trainings_wait_in_line_and_one_that_waits_can_be_stopped(studio: Studio) -> None:
    studio.trainings.start(asked("first", **LONG))
    reach(studio, "first", 1)
    assert studio.trainings.start(asked("second", **SHORT)).state == "waiting"
    studio.trainings.start(asked("third", **SHORT))
    assert studio.trainings.get("third").ahead == 2
    assert studio.trainings.stop("second").state == "stopped"
    studio.trainings.stop("first")
    assert ended(studio, "third").state == "finished"
    assert studio.trainings.get("second").state == "stopped"
    studio.trainings.resume("second")
    assert ended(studio, "second").state == "finished"


def test_a_failure_is_told_and_the_last_good_gates_are_kept(
    studio: Studio, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composer.training.gates import judges

    calls = {"n": 0}
    real = judges.shortfall

    def broken(*given: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        return real(*given) * (float("nan") if calls["n"] > 3 else 1.0)

    monkeypatch.setattr(judges, "shortfall", broken)
    studio.trainings.start(asked(steps=20))
    failed = ended(studio, "both")
    assert failed.state == "failed" and "3 steps in a row" in failed.message
    assert failed.path == loras / "gates" / "both.safetensors"
    assert read_gates(failed.path).training["skipped"] == 3
    monkeypatch.undo()
    studio.trainings.start(asked("next", **SHORT))
    assert ended(studio, "next").state == "finished"


def test_a_lora_for_another_model_is_told_before_any_work_and_blocks_no_name(
    studio: Studio, loras: Path
) -> None:
    alone = {"zibo": ("zibo",), "foreign": ("foreign",)}
    studio.trainings.start(asked(loras=("zibo", "foreign"), alone=alone))
    failed = ended(studio, "both")
    assert failed.state == "failed" and "foreign" in failed.message
    assert not failed.history
    studio.trainings.start(asked(**SHORT))
    assert ended(studio, "both").state == "finished"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loras": ("zibo", "nean")}, "'nean'"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": None}, "learning_rate is None: give a number"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"steps": -1}, "steps is -1"),
        ({"granularity": "atom"}, "granularity 'atom'"),
        ({"company": "friends"}, "company 'friends'"),
        ({"paper": True, "input": "placed"}, "choose the input hidden or experts"),
        ({"prompts": ()}, "names all LoRAs together"),
        ({"alone": {"zibo": ("zibo",)}}, "no prompt for 'neon' alone"),
        ({"loras": ()}, "No LoRA is chosen"),
        ({"loras": ("zibo", "zibo")}, "chosen twice"),
        ({"name": ""}, "has no name"),
        ({"name": "../both"}, "cannot be the name"),
        ({"name": "a/b"}, "cannot be the name"),
        ({"name": ".both"}, "cannot be the name"),
        ({"name": "both."}, "cannot be the name"),
        ({"name": "x" * 100}, "cannot be the name"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(
    studio: Studio, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    if "loras" in settings:
        settings = {**settings, "alone": dict.fromkeys(settings["loras"], ("a",))}
    with pytest.raises(ComposerError, match=message):
        studio.trainings.start(asked(**{"name": "both", **settings}))
    assert studio.trainings.all() == ()
    assert not (tmp_path / "outputs" / "trainings").exists()


def test_a_clip_is_named_or_refused_before_any_work(
    studio: Studio, tiny_sd: Path, tmp_path: Path
) -> None:
    with pytest.raises(ComposerError, match="there is no such folder"):
        studio.trainings.start(asked(paper=True, clip=str(tmp_path / "none")))
    with pytest.raises(ComposerError, match="clip_text_model"):
        studio.trainings.start(asked(paper=True, clip=str(tiny_sd / "text_encoder")))
    assert studio.wait(PATIENCE).state == "ready"
    with pytest.raises(ComposerError, match="has no CLIP beside it"):
        studio.trainings.start(asked(paper=True))
    assert not studio.trainings.all()
    folder = write_clip(tmp_path / "clip", tiny_sd)
    studio.trainings.start(asked(paper=True, clip=str(folder), steps=2))
    last = ended(studio, "both")
    assert last.state == "finished", last.message
    assert set(last.history[-1].losses) == {"loss", "CLIP"}
    assert last.path is not None
    assert read_gates(last.path).training["settings"]["clip"] == str(folder)


def test_a_name_is_given_once(studio: Studio, loras: Path) -> None:
    (loras / "gates").mkdir()
    (loras / "gates" / "Zibo_neon.safetensors").touch()
    assert studio.trainings.suggest(["zibo", "neon"]) == "zibo_neon_2"
    with pytest.raises(ComposerError, match=r"called 'zibo_neon' already.*'zibo_neon_2'"):
        studio.trainings.start(asked("zibo_neon"))
    studio.trainings.start(asked(**LONG))
    with pytest.raises(ComposerError, match="called 'both' already"):
        studio.trainings.start(asked())
    assert studio.trainings.suggest(["a/b", "..", "é!"]) == "a_b____é_"[:-1]


def test_a_lora_that_went_is_missed_when_a_training_is_continued(
    studio: Studio, loras: Path
) -> None:
    studio.trainings.start(asked(**LONG))
    reach(studio, "both", 1)
    studio.trainings.stop("both")
    ended(studio, "both")
    (loras / "neon.safetensors").rename(loras / "away.safetensors")
    studio.cards(refresh=True)
    with pytest.raises(ComposerError, match="'neon'"):
        studio.trainings.resume("both")
    write_lora(loras / "neon.safetensors", seed=9)
    studio.trainings.resume("both")
    failed = ended(studio, "both")
    assert failed.state == "failed" and "other LoRAs" in failed.message


def test_what_is_forgotten_is_gone_but_for_its_gates(
    studio: Studio, loras: Path, tmp_path: Path
) -> None:
    studio.trainings.start(asked(**SHORT))
    with pytest.raises(ComposerError, match="stop it first"):
        studio.trainings.forget("both")
    done = ended(studio, "both")
    studio.trainings.forget("both")
    assert studio.trainings.all() == ()
    assert not (tmp_path / "outputs" / "trainings" / "both").exists()
    assert done.path is not None and done.path.is_file()
    with pytest.raises(ComposerError, match="no training called 'both'"):
        studio.trainings.stop("both")


def test_what_is_forgotten_while_it_ends_does_not_come_back(
    studio: Studio, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lora(loras / "foreign.safetensors", seed=4, width=768)
    forgetting: list[threading.Thread] = []
    write = TrainingFiles.write

    def write_late(files: TrainingFiles, training: Training) -> None:
        if training.state == "failed":
            thread = threading.Thread(target=studio.trainings.forget, args=[training.name])
            thread.start()
            forgetting.append(thread)
            thread.join(0.3)
        write(files, training)

    monkeypatch.setattr(TrainingFiles, "write", write_late)
    studio.trainings.start(
        asked(loras=("zibo", "foreign"), alone={"zibo": ("zibo",), "foreign": ("a",)})
    )
    while not forgetting:  # nobody follows: it may be gone at any moment
        time.sleep(0.01)
    forgetting[0].join()
    assert studio.trainings.all() == ()
    assert not (tmp_path / "outputs" / "trainings" / "both").exists()


def test_a_damaged_record_is_left_out(studio: Studio, tmp_path: Path) -> None:
    records = {"a": "{", "b": "[]", "c": '{"version": 1}', "d": '{"version": 9}'}
    records |= {"e": "[" * 9999, "f": f'{{"version": {"9" * 5000}}}'}
    for name, text in records.items():
        folder = tmp_path / "outputs" / "trainings" / name
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(text)
    assert studio.trainings.all() == ()


def test_prompts_are_drafted_from_trigger_words(studio: Studio) -> None:
    drafted = studio.trainings.draft({"zibo": "zibo fox", "neon": "glowing"})
    assert all("zibo fox" in p and p.endswith("glowing") for p in drafted.composed)
    assert set(drafted.alone) == {"zibo", "neon"}
    with pytest.raises(ComposerError, match="'neon' names no trigger"):
        studio.trainings.draft({"zibo": "zibo fox", "neon": " "})


def test_followers_do_not_hold_a_training_up(studio: Studio) -> None:
    studio.trainings.start(asked(**LONG))
    follower = studio.trainings.follow("both")
    next(follower)
    follower.close()  # pyright: ignore[reportAttributeAccessIssue]
    reach(studio, "both", 1)
    others = [threading.Thread(target=ended, args=(studio, "both")) for _ in range(3)]
    for other in others:
        other.start()
    studio.trainings.stop("both")
    begun = time.monotonic()
    for other in others:
        other.join(PATIENCE)
    assert time.monotonic() - begun < PATIENCE
