from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from studio_pictures import finished, paint, pixels
from tiny_loras import write_lora

from composer.diffusion.png import read_png
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import LoraRow, Normalised
from composer.studio import (
    ComposeRequest,
    Finished,
    PictureSaved,
    Progress,
    Queued,
    Started,
    Studio,
)

REQUEST = Request(prompt="a fox", seed=7, steps=3, cfg_scale=3.0, width=16, height=16)
BOTH = ComposeRequest(
    request=REQUEST, rows=(LoraRow(name="zibo", weight=0.8), LoraRow(name="neon", weight=0.6))
)


@pytest.fixture(scope="module")
def reference(studio: Studio) -> bytes:
    """The pixels of the picture that must come out the same after anything that goes wrong."""
    return pixels(studio, BOTH)


def test_a_picture_tells_how_it_comes_about(studio: Studio) -> None:
    events = [event for event in studio.compose(BOTH) if not isinstance(event, Queued)]
    assert [type(event) for event in events] == [
        Started, Progress, Progress, Progress, PictureSaved, Finished,
    ]  # fmt: skip
    started, _, _, third, saved, over = events
    assert isinstance(started, Started) and started.loras == ("neon", "zibo")
    assert isinstance(third, Progress) and (third.step, third.steps) == (3, 3)
    assert third.preview is not None and third.seconds_left == 0
    assert isinstance(saved, PictureSaved) and isinstance(over, Finished)
    assert over.pictures == (saved.saved,) and not over.cancelled


def test_weights_change_the_picture_and_changing_back_changes_it_back(
    studio: Studio, reference: bytes
) -> None:
    weaker = replace(BOTH, rows=(LoraRow(name="zibo", weight=0.2), BOTH.rows[1]))
    alone = replace(BOTH, rows=BOTH.rows[:1])
    bare = replace(BOTH, rows=())
    pictures = {pixels(studio, asked) for asked in (weaker, alone, bare)}
    assert len(pictures | {reference}) == 4
    assert pixels(studio, BOTH) == reference


def test_the_text_encoder_has_its_own_weight(studio: Studio, reference: bytes) -> None:
    without = replace(BOTH, rows=(replace(BOTH.rows[0], text_encoder=0.0), BOTH.rows[1]))
    assert pixels(studio, without) != reference


def test_a_row_that_is_off_or_weighs_nothing_is_as_if_it_were_not_there(studio: Studio) -> None:
    alone = pixels(studio, replace(BOTH, rows=BOTH.rows[:1]))
    for row in (LoraRow(name="neon", on=False), LoraRow(name="neon", weight=0.0)):
        assert pixels(studio, replace(BOTH, rows=(BOTH.rows[0], row))) == alone


def test_the_order_of_rows_does_not_matter(studio: Studio, reference: bytes) -> None:
    assert pixels(studio, replace(BOTH, rows=BOTH.rows[::-1])) == reference


def test_tags_in_the_prompt_add_rows_and_rule_over_them(studio: Studio, reference: bytes) -> None:
    prompt = "a fox <lora:zibo:0.8> <lora:NEON:0.6>"
    tagged = ComposeRequest(
        request=replace(REQUEST, prompt=prompt), rows=(LoraRow(name="zibo", on=False, weight=-1),)
    )
    assert pixels(studio, tagged) == reference


def test_nla_is_the_sum_with_weights_that_sum_to_one(studio: Studio) -> None:
    rows = (LoraRow(name="zibo", weight=1.5), LoraRow(name="neon", weight=0.5))
    normal = (LoraRow(name="zibo", weight=0.75), LoraRow(name="neon", weight=0.25))
    nla = pixels(studio, ComposeRequest(request=REQUEST, rows=rows, recipe=Normalised()))
    assert nla == pixels(studio, ComposeRequest(request=REQUEST, rows=normal))


def test_pictures_of_one_job_have_seeds_that_count_up(studio: Studio) -> None:
    over = finished(studio.compose(replace(BOTH, request=replace(REQUEST, count=3))))
    assert [saved.record.request.seed for saved in over.pictures] == [7, 8, 9]
    assert len({saved.image().tobytes() for saved in over.pictures}) == 3


def test_an_empty_prompt_is_a_prompt(studio: Studio) -> None:
    assert paint(studio, replace(BOTH, request=replace(REQUEST, prompt=""))).path.is_file()


def test_a_picture_is_made_again_from_its_file(studio: Studio, tmp_path: Path) -> None:
    first = paint(studio, replace(BOTH, request=replace(REQUEST, prompt="a <lora:zibo:1> fox")))
    elsewhere = tmp_path / "renamed.png"
    elsewhere.write_bytes(first.path.read_bytes())
    asked = studio.recall(studio.history.read(elsewhere)).asked
    assert {row.name: row.weight for row in asked.rows} == {"zibo": 1.0, "neon": 0.6}
    assert pixels(studio, asked) == first.image().tobytes()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (LoraRow(name="zibbo"), "Did you mean 'zibo'"),
        (LoraRow(name="../zibo"), "there is no such LoRA"),
        (LoraRow(name="lost"), "NaN"),
        (LoraRow(name="foreign"), "Stable Diffusion 1.x"),
        (LoraRow(name="pickle"), "pickle"),
        (LoraRow(name="cut"), "cut.safetensors"),
    ],
    ids=lambda value: value.name if isinstance(value, LoraRow) else "",
)
def test_a_lora_that_cannot_be_used_is_refused_and_the_next_picture_unharmed(
    studio: Studio, reference: bytes, row: LoraRow, told: str
) -> None:
    with pytest.raises(ComposerError, match=told):
        finished(studio.compose(replace(BOTH, rows=(*BOTH.rows, row))))
    assert pixels(studio, BOTH) == reference


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"steps": 0}, "number of steps is 0"),
        ({"steps": 10_000}, "10000"),
        ({"width": 17}, "16 or 18"),
        ({"sampler": "Eulr"}, "Did you mean 'Euler'"),
        ({"prompt": "a <lora:zibo:much> fox"}, "a number is needed"),
        ({"prompt": "a <lora:zobi:1> fox"}, "zibo"),
        ({"clip_skip": 9}, "Clip skip 9"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_is_refused_and_the_next_picture_unharmed(
    studio: Studio, reference: bytes, setting: dict[str, object], told: str
) -> None:
    with pytest.raises(ComposerError, match=told):
        finished(studio.compose(replace(BOTH, request=Request(**{**vars(REQUEST), **setting}))))  # pyright: ignore[reportArgumentType]
    assert pixels(studio, BOTH) == reference


def test_the_same_lora_twice_is_refused(studio: Studio) -> None:
    with pytest.raises(ComposerError, match="chosen twice"):
        studio.compose(replace(BOTH, rows=(LoraRow(name="zibo"), LoraRow(name="ZIBO"))))


def test_a_fusion_that_cannot_weigh_is_refused_and_the_next_picture_unharmed(
    studio: Studio, reference: bytes
) -> None:
    rows = (LoraRow(name="zibo", weight=1.0), LoraRow(name="neon", weight=-1.0))
    with pytest.raises(ComposerError, match="sum to 0"):
        finished(studio.compose(replace(BOTH, rows=rows, recipe=Normalised())))
    assert pixels(studio, BOTH) == reference


def test_stopping_ends_within_a_step_and_harms_nothing(studio: Studio, reference: bytes) -> None:
    long = replace(BOTH, request=replace(REQUEST, steps=400))
    events = studio.compose(long, owner="ann")
    for event in events:
        if isinstance(event, Progress):
            break
    assert not studio.interrupt("ben")
    begun = time.monotonic()
    assert studio.interrupt("ann")
    rest = list(events)
    assert rest[-1] == Finished(cancelled=True)
    assert len([event for event in rest if isinstance(event, Progress)]) < 300
    assert time.monotonic() - begun < 10
    assert pixels(studio, BOTH) == reference


def test_a_visitor_who_leaves_ends_their_job(studio: Studio, reference: bytes) -> None:
    events = studio.compose(replace(BOTH, request=replace(REQUEST, steps=400)))
    next(events)
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert pixels(studio, BOTH) == reference


def test_two_visitors_queue_and_each_stops_only_their_own(studio: Studio, reference: bytes) -> None:
    slow = studio.compose(replace(BOTH, request=replace(REQUEST, steps=400)), owner="ann")
    next(event for event in slow if isinstance(event, Progress))
    waiting = studio.compose(BOTH, owner="ben")
    assert next(waiting) == Queued(ahead=1)
    assert [line.owner for line in studio.queue] == ["ann", "ben"]
    studio.interrupt("ann")
    assert finished(slow).cancelled
    (picture,) = finished(waiting).pictures
    assert picture.image().tobytes() == reference


def test_when_memory_runs_out_the_size_is_named_and_the_next_picture_unharmed(
    studio: Studio, reference: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("composer.diffusion.sample.predict", run_out)
    with pytest.raises(ComposerError, match=r"16×16 pixels. Ask for a smaller size"):
        finished(studio.compose(BOTH))
    several = replace(BOTH, request=replace(REQUEST, count=2))
    with pytest.raises(ComposerError, match="fewer of them at once"):
        finished(studio.compose(several))
    monkeypatch.undo()
    assert pixels(studio, BOTH) == reference


def test_a_lora_that_changes_or_goes_between_two_pictures(
    tiny_sd: Path, lora_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "loras" / "zibo.safetensors"
    path.parent.mkdir()
    path.write_bytes((lora_folder / "zibo.safetensors").read_bytes())
    studio = Studio(tiny_sd, [path.parent], tmp_path / "outputs")
    asked = replace(BOTH, rows=BOTH.rows[:1])
    first = paint(studio, asked)
    write_lora(path, seed=8)
    second = paint(studio, asked)
    hashes = {saved.record.loras[0].tensor_hash for saved in (first, second)}
    assert len(hashes) == 2 and first.image().tobytes() != second.image().tobytes()
    path.unlink()
    with pytest.raises(ComposerError, match=r"'zibo' is gone: .* Put it back"):
        finished(studio.compose(asked))
    assert paint(studio, replace(asked, rows=())).path.is_file()


def test_a_lora_of_which_a_part_does_nothing_is_asked_about(tiny_sd: Path, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "loras" / "zibo.safetensors", seed=1)
    stray = {
        f"lora_unet_nowhere.{slot}.weight": torch.ones(4, 4) for slot in ("lora_up", "lora_down")
    }
    save_file(load_file(path) | stray | {"<s1>": torch.ones(32)}, path)
    asked = replace(BOTH, rows=BOTH.rows[:1])
    careful = Studio(tiny_sd, [path.parent], tmp_path / "outputs")
    with pytest.raises(ComposerError, match=r"only 4 of the 5 modules.*--partial"):
        finished(careful.compose(asked))
    studio = Studio(tiny_sd, [path.parent], tmp_path / "outputs", partial=True)
    events = list(studio.compose(asked))
    (notes,) = (event.notes for event in events if isinstance(event, Started))
    (note,) = notes
    assert "80% of the modules" in note and "lora_unet_nowhere" in note
    assert read_png(finished(iter(events)).pictures[0].path).loras[0].share == 0.8


def test_experts_are_attached_anew_only_when_others_are_active(studio: Studio) -> None:
    engine = studio._engine  # pyright: ignore[reportPrivateUsage]
    assert engine is not None
    finished(studio.compose(BOTH))
    mixture = engine.mixture  # pyright: ignore[reportPrivateUsage]
    finished(studio.compose(replace(BOTH, rows=(LoraRow(name="zibo", weight=-1), BOTH.rows[1]))))
    assert engine.mixture is mixture  # pyright: ignore[reportPrivateUsage]
    finished(studio.compose(replace(BOTH, rows=BOTH.rows[:1])))
    assert engine.mixture is not mixture  # pyright: ignore[reportPrivateUsage]


def test_cards_show_what_can_be_used_and_say_why_the_rest_cannot(studio: Studio) -> None:
    cards = {card.name: card for card in studio.cards(refresh=True)}
    assert cards["zibo"].info.role == "character" and cards["zibo"].info.trigger == "zibo fox"
    assert {name for name, card in cards.items() if card.error} == {"pickle", "cut"}
    assert {name: cards[name].info.share for name in ("zibo", "cut")} == {"zibo": 1, "cut": None}


def test_a_missing_lora_folder_is_named_and_the_model_still_paints(
    tiny_sd: Path, tmp_path: Path
) -> None:
    studio = Studio(tiny_sd, [tmp_path / "nowhere"], tmp_path / "outputs")
    with pytest.raises(ComposerError, match="nowhere"):
        studio.cards()
    assert paint(studio, ComposeRequest(request=REQUEST)).path.is_file()


def test_a_missing_model_is_named_by_status_and_by_every_job(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "no model", [], tmp_path / "outputs")
    assert studio.wait(60).state == "failed"
    assert "no model" in studio.status.message
    with pytest.raises(ComposerError, match="no model"):
        finished(studio.compose(ComposeRequest(request=REQUEST)))


def test_an_output_folder_that_cannot_be_written_is_named(
    studio: Studio, reference: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(studio.history, "folder", tmp_path / "file")
    with pytest.raises(ComposerError, match="cannot be kept"):
        finished(studio.compose(BOTH))
    monkeypatch.undo()
    assert pixels(studio, BOTH) == reference
