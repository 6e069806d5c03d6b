"""Sets of two to five LoRAs, fused in every way: which there are, how they count, and their
figures."""

from __future__ import annotations

import random
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_benchmark import judged_model, options_of
from tiny_gates import write_gates
from tiny_loras import write_lora

from benchmarks.compos import figures, toybox
from benchmarks.compos.figures import ALL, BY_KIND, GAIN, KEPT, RIGHT, size_table
from benchmarks.compos.toybox import OTHERS, Answer, chosen_sets, rows_of
from benchmarks.questions import which_to_use
from benchmarks.shared import pictures, scenes
from benchmarks.shared.pictures import Case, Cost
from benchmarks.shared.results import Results, Row, in_table, read_results
from benchmarks.shared.scenes import element_heads, fits, scene_with
from benchmarks.shared.ways import ALONE_TITLE, BARE_TITLE, read_ways
from composer.errors import ComposerError
from composer.fusions.merges import PeftLinear
from composer.fusions.registry import PLAIN
from toybox import world
from toybox.captions import plain_caption
from toybox.measure import Judged
from toybox.oracle import Verdict, truth
from toybox.world import CHARACTERS, CLOTHING, ELEMENTS, THINGS, WEARERS, element

CHARACTER = next(name for name in CHARACTERS if name not in WEARERS)
WORN, STYLE = CLOTHING[0], next(e.name for e in ELEMENTS if e.kind == "style")
PAIR = (element(CHARACTER), element(STYLE))
THREE = (element(CHARACTER), element(WORN), element(STYLE))


def test_the_sets_are_all_with_one_character_and_one_of_each_other_kind_at_most() -> None:
    by_kind = {k: [e for e in ELEMENTS if e.kind == k] for k in ("character", *OTHERS)}
    every = {
        frozenset(some)
        for more in range(1, len(OTHERS) + 1)
        for kinds in combinations(OTHERS, more)
        for some in product(by_kind["character"], *(by_kind[kind] for kind in kinds))
    }
    found, tight = chosen_sets(ELEMENTS)
    assert len(found) == len({frozenset(some) for some in found}) == len(every) - tight
    assert {frozenset(some) for some in found} == {s for s in every if fits([*s], dressed=True)}
    for some in found[:: max(len(found) // 40, 1)]:  # each can be drawn
        scene_with(some, random.Random(0), dressed=True)


def test_fewer_sets_are_the_first_of_more_and_even_over_their_sizes() -> None:
    every, _ = chosen_sets(ELEMENTS)
    few, _ = chosen_sets(ELEMENTS, 9)
    assert few == every[:9]
    counts = [sum(len(some) == size for some in few) for size in {len(some) for some in every}]
    assert max(counts) - min(counts) <= 1
    used = [sum(e in some for some in every[:60]) for e in ELEMENTS if e.kind == "character"]
    assert min(used) > 0.5 * max(used)


def test_a_character_wears_the_clothing_if_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (element(WORN), element(CHARACTER))
    objects = tuple(e for e in ELEMENTS if e.kind == "object")[: world.MOST_FIGURES - 1]
    beside = scene_with(pair, random.Random(1), dressed=True)
    assert {f.name in THINGS for f in beside.figures if f.wears} == {True}
    assert fits((*pair, *objects[1:]), dressed=True) and not fits((*pair, *objects), dressed=True)
    monkeypatch.setattr(world, "WEARERS", (*WEARERS, CHARACTER))
    monkeypatch.setattr(scenes, "WEARERS", (*WEARERS, CHARACTER))
    assert fits((*pair, *objects), dressed=True) and not fits((*pair, *objects))
    scene = scene_with((*pair, *objects), random.Random(1), dressed=True)
    (dressed,) = (f for f in scene.figures if f.wears)
    assert (dressed.name, dressed.wears) == (CHARACTER, WORN)
    apart = scene_with(pair, random.Random(1))
    assert {f.name in THINGS for f in apart.figures if f.wears} == {True}
    for taught in (*pair, *objects):
        case = Case(scene=scene, prompt=plain_caption(scene), seed=0)
        right = Judged(case=case, image=Image.new("RGB", (8, 8)), verdict=Verdict(truth(scene)))
        assert right.right(element_heads(scene, taught))


def test_ways_are_named_as_recipes_are() -> None:
    assert read_ways("", toybox.WAYS) == toybox.WAYS
    assert {recipe.key for recipe in PLAIN} < set(toybox.WAYS)
    assert read_ways(
        "bare, ties:density=0.3,rank=8,gates,ties:density=0.3,rank=8", toybox.WAYS
    ) == (
        "bare",
        "ties:density=0.3,rank=8",
        "gates",
    )
    with pytest.raises(ComposerError, match="no fusion 'median'"):
        read_ways("weighted,median", toybox.WAYS)


def answers(*right: str, seconds: float = 1.0, passes: float = 1.0) -> list[Answer]:
    """One for each word: a "1" for each element that is right."""
    cost = Cost(setup=2.0, seconds=seconds, passes=passes)
    return [
        Answer(elements=tuple(c == "1" for c in word), whole=word == "1" * len(word), cost=cost)
        for word in right
    ]


def measured() -> list[Row]:
    """Of two sets, by hand."""
    found = {
        "bare": {PAIR: answers("00", "00"), THREE: answers("000", "000")},
        "weighted": {PAIR: answers("11", "10"), THREE: answers("100", "110")},
        "composite": {
            PAIR: answers("11", "11", passes=2),
            THREE: answers("111", "110", passes=3),
        },
        "k-lora": {PAIR: answers("01", "01")},
        "gates": {THREE: answers("111", "111")},
    }
    alone = {
        element(CHARACTER): answers("1", "1"),
        element(STYLE): answers("1", "0"),
        element(WORN): answers("1", "1"),
    }
    return list(rows_of(found, alone))


def test_elements_are_counted_beside_their_loras_alone() -> None:
    rows = measured()
    whole = {str(row["fusion"]): row for row in in_table(rows, ALL)}
    summed, mixed = whole["Weighted sum"], whole["LoRA Composite"]
    # shares of 1, 0.5, 1/3 and 2/3; alone 2 * 1.5 + 2 * 2.5 of the elements would be right
    assert summed["elements right"] == pytest.approx(0.625)
    assert summed[KEPT] == pytest.approx(6 / 8) and mixed[KEPT] == pytest.approx(9 / 8)
    assert (summed[RIGHT], mixed[RIGHT]) == (0.25, 0.75)
    assert (summed[GAIN], mixed[GAIN]) == (0, 50)
    assert (summed["passes"], mixed["passes"], mixed["fusing (s)"]) == (1, 2.5, 2)
    assert whole["K-LoRA"][GAIN] == -50 and whole["Learned gates"][GAIN] == 100
    three = {str(row["fusion"]): row for row in in_table(rows, size_table(3))}
    assert "K-LoRA" not in three and three["Learned gates"]["sets"] == 1
    by_kind = {str(row["fusion"]): row for row in in_table(rows, BY_KIND)}
    assert by_kind["Weighted sum"]["style right"] == 0.25
    assert by_kind[ALONE_TITLE]["style right"] == 0.5 and by_kind[BARE_TITLE]["style right"] == 0


def results(rows: list[Row], family: str) -> Results:
    rows = [{**row, "family": family} for row in rows]
    words: Any = dict.fromkeys(("title", "command", "commit", "date"), "")
    facts: Any = {key: {} for key in ("machine", "versions", "settings")}
    return Results(name="compos.toybox", notes=(), rows=tuple(rows), **words, **facts)


def test_a_way_is_advised_where_it_surely_gains() -> None:
    rows = measured()
    answer = which_to_use(results(rows, "taught"), results(rows, "wild"))
    assert len(answer.rows) == 4
    pair = answer.rows[0]
    assert pair["best in one pass"] == "Weighted sum" and pair["best of all"] == "LoRA Composite"
    # in one pass gates are better, but not on every set of three: only of that size they are all
    assert answer.rows[1]["best in one pass"] == "Learned gates"
    assert answer.words[0].startswith(
        "With LoRAs taught well, in one pass: Weighted sum for 2; Learned gates for 3; more passes "
        "make up to 50 points more of the pictures right (LoRA Composite for 2)."
    )


def test_figures_are_drawn_of_what_is_there(tmp_path: Path, capsys: Any) -> None:
    drawn = figures.draw(measured())
    assert list(drawn) == ["compos.retention", "compos.cost"]
    for figure in drawn.values():
        assert len(figure.resize((60, 60)).getcolors(3600)) > 20
    less = [{k: v for k, v in row.items() if k != "a picture (s)"} for row in measured()]
    assert list(figures.draw(less)) == ["compos.retention"]
    assert figures.draw([]) == {}
    figures.main(["--results", str(tmp_path), "--images", str(tmp_path)])
    assert "compos_toybox_wild.json is not there yet" in capsys.readouterr().out


@pytest.mark.parametrize("places", [[0.5, 0.51, 0.52], [0.0, 0.0, 0.0, 0.9], [0.3], []])
def test_names_of_lines_are_moved_apart_and_stay_in_order(places: list[float]) -> None:
    found = figures._apart(places, 0.1)
    assert found == sorted(found) and all(at >= 0 for at in found)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(found))
    if places and places[-1] == 0.9:
        assert found[-1] == 0.9


@pytest.fixture
def told(tiny_zero_snr_sd: Path, tmp_path: Path) -> list[str]:
    """A tiny model, an oracle that was never trained, LoRAs, and gates for two of them."""
    model = judged_model(tiny_zero_snr_sd, tmp_path / "tiny")
    loras = tmp_path / "loras"
    files = {
        taught.file: write_lora(loras / f"{taught.file}.safetensors", seed=seed)
        for seed, taught in enumerate(THREE)
    }
    pair = {taught.file: files[taught.file] for taught in PAIR}
    write_gates(loras / "gates" / "pair.safetensors", model, pair)
    write_gates(loras / "gates" / "alien.safetensors", model, pair, model_hash="0" * 64)
    return options_of(model, loras, tmp_path, steps=2)


def test_it_runs_and_goes_on_without_making_a_picture_twice(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> Any:
        raise ComposerError("their ranks differ.")

    monkeypatch.setattr(PeftLinear, "merge", refuse)
    ways = "bare,weighted,peft-linear,composite,k-lora,gates"
    few = [*told, "--ways", ways, "--count", "1"]
    made: list[int] = []
    stopped = False
    sample = pictures.sample

    def counted(model: Any, shots: Any, *given: Any, **named: Any) -> Any:
        nonlocal stopped
        if sum(made) >= 6 and not stopped:
            stopped = True
            raise KeyboardInterrupt
        made.append(len(shots))
        return sample(model, shots, *given, **named)

    monkeypatch.setattr(pictures, "sample", counted)
    with pytest.raises(KeyboardInterrupt):
        toybox.main(few)
    kept = len(list((tmp_path / "cache/pictures").glob("*.png")))
    assert kept == sum(made)
    toybox.main(few)
    # three sets by three ways, two of them by K-LoRA, one by gates; each LoRA alone
    held = [sum(e in some for some in chosen_sets(THREE)[0]) for e in THREE]
    assert kept < sum(made) == 3 * 3 + 2 + 1 + sum(held)
    read = read_results(tmp_path / "results" / "compos_toybox.json")
    assert read.notes[-1] == "PEFT linear refuses 3 of the sets: their ranks differ."
    by_way = {row["fusion"]: row for row in in_table(read.rows, ALL)}
    assert [row["sets"] for row in by_way.values()] == [3, 3, 3, 2, 1]
    assert by_way["LoRA Composite"]["passes"] == pytest.approx((2 + 2 + 3) / 3, abs=0.01)
    assert by_way[BARE_TITLE]["passes"] == by_way["Weighted sum"]["passes"] == 1
    for name in ("compos_toybox", "compos_cost"):  # an untrained oracle finds nothing to be kept
        assert (tmp_path / "images" / f"{name}.webp").stat().st_size > 1000


@pytest.mark.parametrize("wrong", ["--sets", "--count"])
def test_none_at_all_is_refused(told: list[str], wrong: str) -> None:
    with pytest.raises(ComposerError, match=f"{wrong} is 0"):
        toybox.main([*told, wrong, "0"])
