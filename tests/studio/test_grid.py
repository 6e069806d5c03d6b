"""Grids of pictures: their axes, that nothing is painted twice, and what is written of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studio_pictures import finished, ready
from tiny_clip import write_clip, write_dino
from tiny_loras import write_lora
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.clip import CLIP, DINO, Encoder
from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.denoise import predict
from composer.diffusion.record import PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.evaluation.intervals import FEWEST, Interval, Paired
from composer.evaluation.report import Shown, Standing, by_way, report, write_report
from composer.fusions import LoraRow, Plan, Sum, read_recipe
from composer.studio import ComposeRequest, PictureSaved, Progress, Studio, scores as scoring
from composer.studio.axes import GridCell, cells_of, read_axis, variables
from composer.studio.engine import Engine
from composer.studio.grid import Filled, GridFolder, Painted, Scores
from composer.studio.grid_report import notes_on, standings_of
from composer.training.gates.judges import LEVELS
from composer.training.objective import Objective

REQUEST = Request(prompt="a zibo fox", seed=4, steps=2, width=16, height=16, cfg_scale=2.0, count=3)
ASKED = ComposeRequest(request=REQUEST, rows=(LoraRow(name="zibo"), LoraRow(name="neon")))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid") / "loras"
    write_lora(folder / "zibo.safetensors", seed=0)
    write_lora(folder / "neon.safetensors", seed=1, **{"composer.role": "style"})
    return folder


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return ready(tiny_sd, loras, tmp_path_factory.mktemp("outputs"))


def filled(
    studio: Studio, cells: Sequence[GridCell], folder: Path, *, asked: bool = False
) -> list[Filled]:
    """Those that have their scores, in the order of the cells."""
    events = studio.grid(cells, GridFolder(folder), scored=asked)
    return [event for event in events if isinstance(event, Filled) and event.scores]


def scored(
    studio: Studio, cells: Sequence[GridCell], folder: Path, *, asked: bool = True
) -> list[dict[str, float]]:
    return [one.row for one in filled(studio, cells, folder, asked=asked)]


def test_cells_are_every_combination_the_last_axis_fastest() -> None:
    axes = [read_axis(text) for text in ("seed=1,2", "density=0.3,0.5", "way=ties|dare:density=1")]
    cells = cells_of(ASKED, axes)
    assert [cell.labels for cell in cells[:3]] == [
        ("1", "0.3", "ties"),
        ("1", "0.3", "dare:density=1"),
        ("1", "0.5", "ties"),
    ]
    assert len(cells) == 8 and {cell.asked.request.count for cell in cells} == {1}
    # the way is chosen first, then its parameters, whatever the order of the axes
    assert cells[0].asked.recipe == read_recipe("ties:density=0.3")
    assert cells[1].asked.recipe == read_recipe("dare:density=0.3")
    assert cells[-1].asked.request.seed == 2


def test_every_kind_of_axis_changes_its_thing_alone() -> None:
    def only(text: str) -> ComposeRequest:
        (cell,) = cells_of(ASKED, [read_axis(text)])
        return cell.asked

    assert only("cfg=3.5").request.cfg_scale == 3.5 and only("steps=7").request.steps == 7
    assert only("sampler=Euler a").request.sampler == "Euler a"
    assert only("prompt=a cat").request.prompt == "a cat"
    assert only("width=32").request.width == 32
    assert only("way=bare").rows == () and only("way=bare").recipe == Sum()
    assert only("way=alone:neon").rows == (LoraRow(name="neon"),)
    assert only("way=gates:pair").recipe.key == "gates:pair"
    rows = {row.name: row.weight for row in only("lora:zibo=0.25").rows}
    assert rows == {"zibo": 0.25, "neon": 1.0}
    rows = {row.name: row.weight for row in only("lora:moon=2").rows}
    assert rows == {"zibo": 1.0, "neon": 1.0, "moon": 2.0}
    values = [cell.labels[0] for cell in cells_of(ASKED, [read_axis("prompt=a, b|c")])]
    assert values == ["a, b", "c"]
    bare = cells_of(ASKED, [read_axis("lora:zibo=0.5,1"), read_axis("way=bare|weighted")])
    assert [len(cell.asked.rows) for cell in bare] == [0, 2, 0, 2]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["seed"], "not understood"),
        (["=1"], "not understood"),
        (["seed="], "not understood"),
        (["seed=1,,2"], "not understood"),
        (["seed=1,1"], "twice"),
        (["seed=1", "seed=2"], "twice"),
        (["seed=x"], "whole number"),
        (["seed=1.5"], "whole number"),
        (["cfg=nan"], "number"),
        (["lora:zibo=much"], "number"),
        (["lora:zibo=99"], "between"),
        (["steps=0"], "number of steps"),
        (["sampler=magic"], "sampler"),
        (["way=magic"], "no fusion"),
        (["count=1,2"], "no axis 'count'"),
        (["density=0.3"], "no axis 'density'"),
        (["ties:density=0.3", "way=dare"], "no axis 'ties:density'"),
        (["magic:density=0.3", "way=dare"], "no axis"),
        (["density=7", "way=ties"], "density"),
        (
            [f"seed={','.join(map(str, range(40)))}", f"steps={','.join(map(str, range(1, 40)))}"],
            "1560",
        ),
    ],
)
def test_what_no_axis_is_is_said(texts: list[str], words: str) -> None:
    with pytest.raises(ComposerError, match=words):
        for cell in cells_of(ASKED, [read_axis(text) for text in texts]):
            cell.asked.request.resolve(size=16, multiple=2)


def test_a_way_without_the_parameter_of_an_axis_stays_as_it_is() -> None:
    axes = [read_axis("density=0.3,0.4"), read_axis("way=ties|weighted|dare")]
    keys = [cell.asked.recipe.key for cell in cells_of(ASKED, axes)]
    assert keys == [
        "ties:density=0.3", "weighted", "dare:density=0.3",
        "ties:density=0.4", "weighted", "dare:density=0.4",
    ]  # fmt: skip
    # of one way alone, and where a request has a field of that name
    axes = [
        read_axis("ties:density=0.3"),
        read_axis("energy:strength=2"),
        read_axis("strength=0.5"),
    ]
    cells = cells_of(ASKED, [*axes, read_axis("way=ties|dare|energy")])
    assert [cell.asked.recipe.key for cell in cells] == [
        "ties:density=0.3", "dare", "energy:strength=2.0",
    ]  # fmt: skip
    assert {cell.asked.request.strength for cell in cells} == {0.5}


def test_every_variable_that_a_page_offers_is_an_axis() -> None:
    for variable in variables():
        axis = read_axis(f"{variable.name}={variable.example}")
        ways = read_axis(f"way={'|'.join(variable.ways or ('weighted',))}")
        cells = cells_of(ASKED, [ways, axis])
        assert len(cells) == len(ways.places) * len(axis.places), variable.name


def test_what_is_asked_for_twice_is_painted_once(studio: Studio, tmp_path: Path) -> None:
    cells = cells_of(ASKED, [read_axis("lora:zibo=0.5,1"), read_axis("way=bare|alone:neon")])
    events = list(studio.grid(cells, GridFolder(tmp_path)))
    assert len(finished(events).pictures) == 2
    places = [event.cell for event in events if isinstance(event, Filled) and not event.scores]
    assert places == [0, 2, 1, 3]
    shown = [event.pictures.start for event in events if isinstance(event, Progress)]
    assert shown == [0, 0, 1, 1]
    again = [e for e in studio.grid(cells, GridFolder(tmp_path)) if isinstance(e, Filled)]
    assert [event.cell for event in again] == [0, 1, 2, 3] * 2  # at once, then with scores


def test_seeds_that_count_up_are_painted_together(studio: Studio, tmp_path: Path) -> None:
    cells = cells_of(ASKED, [read_axis("seed=5,6,7"), read_axis("way=bare|weighted")])
    events = list(studio.grid(cells, GridFolder(tmp_path / "whole")))
    shown = [event.pictures for event in events if isinstance(event, Progress)]
    assert shown == [range(0, 5, 2)] * 2 + [range(1, 6, 2)] * 2  # two steps for each way
    assert {event.count for event in events if isinstance(event, Progress)} == {6}
    seeds = [one.record.request.seed for one in finished(events).pictures]
    assert seeds == [5, 6, 7] * 2
    times = [event.painted.seconds for event in events if isinstance(event, Filled)]
    assert all(times) and max(times[:3]) < 3 * min(times[:3])
    # seeds with a gap, and other steps, are painted one by one
    cells = cells_of(ASKED, [read_axis("seed=5,6,9"), read_axis("steps=1,2")])
    events = list(studio.grid(cells, GridFolder(tmp_path / "gap")))
    assert {len(event.pictures) for event in events if isinstance(event, Progress)} == {1}
    assert len(finished(events).pictures) == 6


def test_what_is_painted_is_not_painted_again(studio: Studio, tmp_path: Path) -> None:
    cells = cells_of(ASKED, [read_axis("seed=1,2"), read_axis("way=bare|alone:zibo|weighted")])
    first = finished(studio.grid(cells, GridFolder(tmp_path))).pictures
    assert len(first) == 6
    # way by way, so that each is attached once
    assert [len(one.rows) for one in first] == [0, 0, 1, 1, 2, 2]
    assert finished(studio.grid(cells, GridFolder(tmp_path))).pictures == ()
    # one is lost, one is new, and the others stay
    first[3].path.unlink()
    more = cells_of(ASKED, [read_axis("seed=1,2"), read_axis("way=bare|alone:zibo|weighted|ties")])
    again = finished(studio.grid(more, GridFolder(tmp_path))).pictures
    assert len(again) == 3
    painted = [one.painted for one in filled(studio, more, tmp_path)]
    assert len(painted) == len(more)
    # each is the picture that Compose makes
    for cell, one in zip(more, painted, strict=True):
        (alone,) = finished(studio.compose(cell.asked)).pictures
        assert one.saved.image().tobytes() == alone.image().tobytes()
        assert one.seconds > 0 and one.saved.record.request == alone.record.request


def test_a_folder_that_was_written_into_is_not_followed_outside(
    studio: Studio, tmp_path: Path
) -> None:
    cells = cells_of(ASKED, [read_axis("seed=1")])
    finished(studio.grid(cells, GridFolder(tmp_path)))
    (key,) = json.loads((tmp_path / "painted.json").read_text())
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    outside = {"picture": "../outside.png", "seconds": 1}
    gone = {"picture": "gone.png", "seconds": 1.0}
    for odd in (outside, gone, outside | {"seconds": "x"}, "x", None, [], 3, {"picture": 1}):
        (tmp_path / "painted.json").write_text(json.dumps({key: odd}))
        assert GridFolder(tmp_path).find(key) is None
    (tmp_path / "painted.json").write_text("[")
    with pytest.raises(ComposerError, match=r"painted\.json is damaged"):
        GridFolder(tmp_path)


def test_scores_are_parts_of_what_each_lora_makes_alone(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With judges that say what is known: D of zibo and neon by the LoRAs in a picture."""
    said = {(): [0.1, -0.2], ("neon",): [2.0, 0.1], ("zibo",): [0.3, -4.0]}
    said["neon", "zibo"] = [1.5, 2.0]

    asked: list[tuple[str, ...]] = []

    def judge(engine: Engine, one: Painted, prompt: str, names: Sequence[str]) -> list[float]:
        assert engine.mixture is not None and {*names} <= {*engine.mixture.names}
        assert prompt == REQUEST.prompt
        asked.append(tuple(names))
        found = dict(zip(("neon", "zibo"), said[tuple(sorted(names))], strict=True))
        assert {*names} == {row.name for row in one.saved.rows}
        return [found[name] for name in names]

    monkeypatch.setattr(scoring, "recognised", judge)
    ways = "way=bare|alone:zibo|alone:neon|weighted"
    cells = cells_of(ASKED, [read_axis("seed=1"), read_axis(ways)])
    found = scored(studio, cells, tmp_path)
    assert set(found[0]) == {"seconds", "unlike bare"}
    assert set(found[1]) == {"seconds", "zibo: D", "unlike bare"}  # D* below 0 is no measure
    assert found[2]["neon recognised"] == 1.0 and found[3]["neon recognised"] == 0.75
    assert "zibo recognised" not in found[3] and found[3]["zibo: D"] == 2.0
    assert found[0]["unlike bare"] == 0.0 and found[3]["unlike bare"] > 0
    # once each, of the LoRAs that are in a picture
    assert asked == [("zibo",), ("neon",), ("neon", "zibo")]
    # without a picture of it alone, what the judges say is given as it is
    bare = cells_of(ASKED, [read_axis("seed=1"), read_axis("way=weighted")])
    (one,) = scored(studio, bare, tmp_path)
    assert (one["neon: D"], one["zibo: D"]) == (1.5, 2.0)
    # what is known of a picture is kept beside it, as long as it is that picture
    assert scored(studio, cells, tmp_path) == found and len(asked) == 3
    first, *_, last = filled(studio, cells, tmp_path)
    path = last.painted.saved.scores_path
    told = json.loads(path.read_text())
    assert sorted(told["scores"].values()) == [1.5, 2.0]
    assert not first.painted.saved.scores_path.exists()
    broken = ({**told, "scores": []}, {**told, "scores": dict.fromkeys(told["scores"], "1.5")}, [])
    for text in ("[", *map(json.dumps, broken)):
        path.write_text(text)
        assert scored(studio, cells, tmp_path) == found and json.loads(path.read_text()) == told
    assert asked[3:] == [("neon", "zibo")] * 4
    Image.new("RGB", (16, 16)).save(last.painted.saved.path)
    with scoring.kept(last.painted, told["of"][0]) as known:
        assert known == {}
    assert [set(one) for one in scored(studio, bare, tmp_path, asked=False)] == [{"seconds"}]


def test_without_ways_there_is_nothing_to_be_a_part_of(studio: Studio, tmp_path: Path) -> None:
    (one,) = scored(studio, cells_of(ASKED, [read_axis("seed=1")]), tmp_path)
    assert set(one) == {"seconds", "neon: D", "zibo: D"}


def test_ways_stand_beside_the_sum_in_pairs(studio: Studio, tmp_path: Path) -> None:
    """Of scores that are known, with one picture for all."""
    seeds = range(FEWEST)
    axes = [read_axis(f"seed={'|'.join(map(str, seeds))}"), read_axis("density=0.3,0.4")]
    cells = cells_of(ASKED, [*axes, read_axis("way=bare|alone:zibo|weighted|ties|nla")])
    saved = studio.history.save(Image.new("RGB", (16, 16)), PictureRecord(request=REQUEST))
    painted = Painted(saved=saved, seconds=2.0)

    def known(cell: GridCell) -> Scores:
        seed, density, way = int(cell.labels[0]), cell.labels[1], cell.labels[2]
        if way == "bare":
            return Scores(unlike_bare=0.0)
        if way == "alone:zibo":
            return Scores(judged={"zibo": 0.5}, recognised={"zibo": 1.0}, unlike_bare=3.0)
        zibo = {"weighted": 0.5, "ties": 0.5 + 0.01 * seed, "nla": 0.4}[way]
        zibo += 0.1 * (way == "ties" and density == "0.4")
        return Scores(
            judged={"zibo": 0.1, "neon": 0.1},
            recognised={"zibo": zibo + seed, "neon": 0.2 + seed},  # seeds differ more than ways
            unlike_bare=5.0,
        )

    filled = {
        n: Filled(cell=n, painted=painted, scores=known(cell)) for n, cell in enumerate(cells)
    }
    del filled[len(cells) - 1]  # the last one of nla is missing
    standings, against = standings_of(cells, filled)
    by = {(one.way, one.score): one for one in standings}
    assert against == "weighted" and by["bare", "seconds"].mean == 2.0
    assert {way for way, _ in by} == {"bare", "alone:zibo", "weighted", "ties", "nla"}
    ties = by["ties", "recognised"]
    assert ties.pictures == 2 * FEWEST and ties.paired is not None
    assert (ties.paired.pairs, ties.paired.clusters) == (2 * FEWEST, FEWEST)
    assert ties.mean == pytest.approx(4.5 + (0.5 + 0.045 + 0.05 + 0.2) / 2)
    assert ties.paired.wins == (2 * FEWEST - 0.5) / (2 * FEWEST)  # one is the same
    assert ties.paired.difference == pytest.approx((0.045 + 0.05) / 2)
    assert ties.paired.interval is not None and 0 < ties.paired.interval.low < 0.0475
    least = by["ties", "least recognised"].paired
    assert least is not None and (least.wins, least.difference) == (0.5, 0.0)
    nla = by["nla", "recognised"].paired
    assert nla is not None and (nla.pairs, nla.wins) == (2 * FEWEST - 1, 0.0)
    # other LoRAs, the sum itself, and what is no merit are not compared
    for way, score in (
        ("alone:zibo", "recognised"), ("weighted", "recognised"), ("ties", "unlike bare"),
        ("ties", "seconds"),
    ):  # fmt: skip
        assert by[way, score].paired is None, (way, score)
    columns = ["recognised", "least recognised", "unlike bare", "seconds"]
    assert by_way(standings)[0] == columns  # though the first way has the last two alone
    notes = " ".join(notes_on(standings, "Weights of 1"))
    assert "(Weights of 1)" in notes and all(name in notes for name in ("recognised:", "seconds:"))
    assert "D:" not in notes
    # without a sum there is nothing to be compared with, without ways nothing at all
    others = [n for n, cell in enumerate(cells) if cell.labels[2] != "weighted"]
    some, none = standings_of(cells, {n: filled[n] for n in others if n in filled})
    assert none == "" and {one.paired for one in some} == {None}
    assert standings_of(cells_of(ASKED, axes[:1]), {0: filled[0]}) == ((), "")


def test_a_clip_and_a_dino_score_by_their_definitions(
    studio: Studio, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(ASKED, request=replace(REQUEST, prompt="a (zibo:1.2) fox BREAK neon"))
    ways = read_axis("way=bare|alone:zibo|alone:neon|weighted")
    cells = cells_of(asked, [read_axis("seed=1,2,3"), ways])
    clip = write_clip(tmp_path / "clip", tiny_sd)
    encoders = {"clip": str(clip), "dino": str(write_dino(tmp_path / "dino"))}

    def run(cells: Sequence[GridCell]) -> list[Filled]:
        events = studio.grid(cells, GridFolder(tmp_path / "out"), **encoders)
        return [event for event in events if isinstance(event, Filled) and event.scores]

    found = run(cells)
    loras = {"bare": (), "alone:zibo": ("zibo",), "alone:neon": ("neon",)}
    loras["weighted"] = ("neon", "zibo")
    alone = {"zibo": (1, 5, 9), "neon": (2, 6, 10)}
    for kind, score in ((CLIP, "CLIP-I"), (DINO, "DINO")):
        encoder = Encoder.load(kind, encoders[kind.name.lower()], torch.device("cpu"))
        seen = [encoder.look(one.painted.saved.image()).double() for one in found]
        if kind is CLIP:
            words = encoder.read("a zibo fox neon").double()
            for one, vector in zip(found, seen, strict=True):
                assert one.row["CLIP-T"] == pytest.approx(float(vector @ words), abs=1e-5)
        for number, (cell, one) in enumerate(zip(cells, found, strict=True)):
            known = loras[cell.labels[1]]
            means: list[float] = []
            for name in known:
                others = [float(seen[number] @ seen[n]) for n in alone[name] if n != number]
                means.append(sum(others) / len(others))
                assert one.row[f"{name} {score}"] == pytest.approx(means[-1], abs=1e-5)
            if known:
                assert one.overall[score][1] == pytest.approx(sum(means) / len(means), abs=1e-5)
                assert one.overall[f"least {score}"][1] == pytest.approx(min(means), abs=1e-5)
            assert {n for n in one.row if n.endswith(score)} == {f"{n} {score}" for n in known}
    assert "zibo: D" not in found[1].row  # the LoRAs were not asked
    standings, _ = standings_of(
        cells_of(asked, [read_axis("seed=1,2,3"), read_axis("way=weighted|ties")]),
        {n: replace(one, cell=n) for n, one in enumerate([found[3], found[7]])},
    )
    assert {"CLIP-T", "CLIP-I", "least DINO"} <= {one.score for one in standings if one.paired}
    assert any("does not agree" in note for note in notes_on(standings, "weighted"))
    # what was looked at is not looked at again; what is new or damaged is
    looked: list[Image.Image] = []
    look = Encoder.look

    def counted(encoder: Encoder, picture: Image.Image) -> torch.Tensor:
        looked.append(picture)
        return look(encoder, picture)

    monkeypatch.setattr(Encoder, "look", counted)
    again = run(cells)
    assert not looked and [one.row for one in again] == [one.row for one in found]
    path = again[0].painted.saved.scores_path
    told = json.loads(path.read_text())
    for odd in (["x"], [1.0], None):
        path.write_text(json.dumps({**told, "scores": dict.fromkeys(told["scores"], odd)}))
        run(cells[:4])
    assert len(looked) == 3 * 2 and json.loads(path.read_text()) == told
    # a single picture of a LoRA is not compared with itself
    (one,) = run(cells_of(asked, [read_axis("seed=1"), read_axis("way=alone:zibo")]))
    assert set(one.row) == {"seconds", "CLIP-T"}


def test_reference_pictures_are_compared_whole_and_by_their_best_crop(
    studio: Studio, tiny_sd: Path, tmp_path: Path
) -> None:
    drawn = np.random.default_rng(0)
    folders = {name: tmp_path / name for name in ("zibo", "neon")}
    shown: dict[str, list[Image.Image]] = {}
    for name, folder in folders.items():
        folder.mkdir()
        pixels = drawn.integers(0, 256, (2, 14, 10, 3), dtype=np.uint8)
        shown[name] = [Image.fromarray(some) for some in pixels]
        for number, image in enumerate(shown[name]):
            image.save(folder / f"{number}.png")
    wide = replace(ASKED, request=replace(REQUEST, width=32))
    cells = cells_of(wide, [read_axis("way=bare|alone:zibo|weighted")])
    encoder = Encoder.load(CLIP, str(write_clip(tmp_path / "clip", tiny_sd)), torch.device("cpu"))

    def run(*names: str) -> list[Filled]:
        events = studio.grid(
            cells,
            GridFolder(tmp_path / "out"),
            clip=str(tmp_path / "clip"),
            references={name: folders[name] for name in names},
        )
        return [event for event in events if isinstance(event, Filled) and event.scores]

    # of 32x16 pixels: sides 16, 12 and 8, and how far their left edges and upper edges may be
    corners = [
        (16, (0, 8, 16), (0,)),
        (12, (0, 5, 10, 15, 20), (0, 4)),
        (8, range(0, 25, 4), (0, 4, 8)),
    ]
    found = run("zibo", "neon")
    for one, names in zip(found, ((), ("zibo",), ("neon", "zibo")), strict=True):
        image = one.painted.saved.image()
        crops = [
            image.crop((x, y, x + side, y + side))
            for side, across, down in corners
            for y in down
            for x in across
        ]
        assert one.scores is not None and set(one.scores.likeness) == (
            {"CLIP-I", "cropped CLIP-I"} if names else set()
        )
        for name in names:
            mean = torch.stack([encoder.look(r) for r in shown[name]]).mean(0)
            whole = float(encoder.look(image) @ mean)
            best = whole if name == "neon" else max(float(encoder.look(c) @ mean) for c in crops)
            assert one.row[f"{name} CLIP-I"] == pytest.approx(whole, abs=1e-5)
            assert one.row[f"{name} cropped CLIP-I"] == pytest.approx(best, abs=1e-5)
            assert name == "neon" or best > whole
    both = found[-1].overall
    values = [found[-1].row[f"{name} cropped CLIP-I"] for name in folders]
    assert both["least cropped CLIP-I"][1] == min(values)
    assert both["cropped CLIP-I"][1] == pytest.approx(sum(values) / 2)
    standings, _ = standings_of(cells, dict(enumerate(found)))
    told = " ".join(notes_on(standings, ""))
    assert "cropped CLIP-I: CLIP-I of the crop" in told
    # what has no reference is not compared, and other pictures are other scores
    shown["zibo"][0].save(folders["neon"] / "1.png")
    again = run("neon")[-1].row
    assert {n for n in again if "CLIP-I" in n} == {"neon CLIP-I", "neon cropped CLIP-I"}
    assert again["neon CLIP-I"] != found[-1].row["neon CLIP-I"]


def test_references_that_cannot_be_used_are_refused_before_any_picture(
    studio: Studio, tiny_sd: Path, tmp_path: Path
) -> None:
    clip = str(write_clip(tmp_path / "clip", tiny_sd))
    cells = cells_of(ASKED, [read_axis("way=alone:zibo")])
    folder = tmp_path / "pictures"

    def refused(name: str, **encoders: str) -> str:
        with pytest.raises(ComposerError) as error:
            studio.grid(cells, references={name: folder}, **encoders)
        return str(error.value)

    assert "There is no folder" in refused("zibo", clip=clip)
    folder.mkdir()
    assert "has no pictures" in refused("zibo", clip=clip)
    (folder / "a.png").write_text("no picture")
    assert "cannot be read as a picture" in refused("zibo", clip=clip)
    Image.new("RGBA", (8, 8)).save(folder / "a.png")
    assert "no picture has: name one of zibo" in refused("neon", clip=clip)
    assert "there is no such LoRA" in refused("moon", clip=clip)
    assert "by a CLIP or a DINO" in refused("zibo")


def test_a_lora_recognises_what_it_draws_by_the_judges_own_words(
    studio: Studio, tmp_path: Path
) -> None:
    """D as its definition has it, noise level by noise level."""
    cells = cells_of(ASKED, [read_axis("way=weighted")])
    ((name, value), *_) = [
        (name, value)
        for one in scored(studio, cells, tmp_path)
        for name, value in one.items()
        if name.endswith(": D")
    ]
    assert name == "neon: D"
    (one,) = filled(studio, cells, tmp_path)
    engine: Engine = studio._engine  # pyright: ignore
    paths = {n: studio.card(n).path for n in ("neon", "zibo")}
    rows = {n: LoraRow(name=n) for n in paths}
    engine.mix(Plan(recipe=Sum(), rows=rows, paths=paths))
    model, process = engine.model, Objective.from_scheduler(engine.model.scheduler_config)
    assert engine.mixture is not None
    pixels = torch.tensor(np.asarray(one.painted.saved.image()) / 255).float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        clean = model.to_latents(pixels.permute(2, 0, 1)[None]).expand(8, -1, -1, -1)
        first, last = (int(part * process.timesteps) for part in LEVELS)
        levels = torch.randint(first, last, (8,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy, right = (f(clean, noise, levels) for f in (process.noised, process.target))
        errors: list[torch.Tensor] = []
        for weight in (0.0, 1.0):
            engine.mixture.set_weights({"neon": weight})
            text = encode_prompts(model, REQUEST.prompt, None).positive.repeated(8)
            made = predict(model, noisy, levels, text)
            errors.append((made - right).square().mean((1, 2, 3)).log())
    assert value == pytest.approx(float((errors[0] - errors[1]).mean()), rel=1e-3, abs=1e-4)


def test_a_grid_that_is_stopped_keeps_what_is_there_and_scores_it(
    studio: Studio, tmp_path: Path
) -> None:
    cells = cells_of(ASKED, [read_axis("seed=1,2,3")])
    folder, kinds = GridFolder(tmp_path), list[str]()
    for event in studio.grid(cells, folder, scored=True, owner="me"):
        kinds.append(type(event).__name__)
        if isinstance(event, PictureSaved):
            studio.interrupt("me")
    assert kinds.count("PictureSaved") == 1 and kinds[-1] == "Finished"
    assert len(filled(studio, cells, tmp_path)) == 3  # it goes on


def test_a_report_says_all_and_is_safe(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    shown = [
        Shown(
            labels=(evil, way),
            caption=f"{evil}\n{way}",
            file=f"pictures/{way}.png",
            image=Image.new("RGB", (16, 16), "teal"),
            scores={"seconds": 1.5} if way == "a" else {},
        )
        for way in ("a", "b")
    ]
    interval = Interval(value=0.5, low=-0.25, high=0.75)
    sure = Paired(pairs=12, clusters=10, wins=0.75, difference=0.5, interval=interval)
    standings = [
        Standing(way=evil, score="quality", pictures=12, mean=0.125, paired=sure),
        Standing(way="b", score="quality", pictures=2, mean=2, paired=replace(sure, interval=None)),
        Standing(way="b", score="seconds", pictures=1, mean=1.5),
    ]
    # in per cent of a whole, as the page says parts
    assert standings[0].lines(0.5) == ("25 %", "wins 75 % of 12", "+100 (-50 to +150)")
    assert standings[2].lines(2) == ("75 %",)
    files = report(
        f"{evil} {{pictures}}",
        ["prompt", "way"],
        [*shown, None],
        across=2,
        standings=standings,
        notes=[f"Beside {evil}."],
    )
    paths = write_report(tmp_path, files)
    assert [path.name for path in paths] == [
        "grid.png", "scores.csv", "ways.csv", "scores.json", "index.html",
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert rows[0] == {"prompt": evil, "way": "a", "picture": "pictures/a.png", "seconds": "1.5"}
    assert rows[1]["seconds"] == ""
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["pictures"][1]["way"] == "b" and told["ways"][0]["difference high"] == 0.75
    ways = list(csv.DictReader((tmp_path / "ways.csv").open()))
    assert ways[0]["way"] == evil and (ways[0]["wins"], ways[0]["difference low"]) == (
        "0.75",
        "-0.25",
    )
    assert (ways[1]["note"], ways[1]["difference low"]) == ("too few pairs", "")
    assert (ways[2]["mean"], ways[2]["pairs"], ways[2]["note"]) == ("1.5", "", "")
    page = (tmp_path / "index.html").read_text()
    assert evil not in page and page.count("data:image/webp") == 2
    assert "0.125<br>wins 75 % of 12<br>+0.5 (-0.25 to +0.75)</td><td></td>" in page
    assert "2<br>wins 75 % of 12<br>+0.5 (too few pairs)</td><td data-value=1.5>1.5</td>" in page
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    sheet = Image.open(tmp_path / "grid.png")
    assert sheet.width > 2 * 256 and sheet.height > 2 * 256  # one that is missing has its place


def test_the_command_writes_a_report_and_goes_on(
    tiny_sd: Path, loras: Path, tmp_path: Path
) -> None:
    def run(*more: str) -> list[str]:
        words = ["compare", "a zibo fox", "-o", str(tmp_path / "out"), "--model", str(tiny_sd)]
        words += ["--lora-dir", str(loras), "--steps", "2", "--size", "16x16", "--no-scores"]
        result = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout.split()

    pair = ["--lora", "zibo", "--lora", "neon=0.5"]
    written = run(*pair, "--x", "way=weighted|switch", "--y", "seed=1,2")
    assert Path(written[-1]).name == "index.html" and Path(written[-1]).is_file()
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("00*.png"))]
    assert len(times) == 4
    run(*pair, "--x", "way=weighted|switch", "--y", "seed=1,2")
    again = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("00*.png"))]
    assert again == times
    # without an axis: the model, each alone and the usual ways, for two seeds
    run(*pair)
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    ways = ["bare", "alone:zibo", "alone:neon", "weighted", "nla", "regions"]
    assert [row["way"] for row in rows] == ways * 2
    told = list(csv.DictReader((tmp_path / "out" / "ways.csv").open()))
    assert [(row["way"], row["score"]) for row in told] == [(way, "seconds") for way in ways]
    assert {row["pairs"] for row in told} == {""}  # a longer time is no win
    # references go to the LoRAs they name
    clip = str(write_clip(tmp_path / "clip", tiny_sd))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "photos" / "a.png")
    shown = ["--clip", clip, "--reference", f"zibo={tmp_path / 'photos'}"]
    run(*pair, "--x", "way=weighted|switch", *shown)
    told = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert all(row["zibo cropped CLIP-I"] for row in told)
    words = ["compare", "a fox", "-o", str(tmp_path / "out"), "--reference", "zibo"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "NAME=FOLDER" in result.stderr
