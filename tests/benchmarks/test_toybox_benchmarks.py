"""The benchmarks: what they ask, how they score, and that they run, on a tiny random model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_benchmark import judged_model, options_of

from benchmarks import tables
from benchmarks.gates import merges
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import read_results
from benchmarks.shared.scenes import (
    FIGURE_KINDS,
    element_heads,
    rest_heads,
    scene_with,
    without,
)
from benchmarks.shared.sets import cases, placed, sets_of, weighed
from benchmarks.toybox import lora_alone, merging, model as toybox_model, speed
from composer.diffusion.load import load_model
from composer.errors import ComposerError
from composer.experts import LoraInfo, LowRank, ModuleNames, write_lora
from composer.fusions.tuned_weights import read_tuned_weights
from toybox import measure
from toybox.captions import plain_caption
from toybox.measure import Judged, unseen_prompt
from toybox.oracle import SLOTS, Verdict, judgeable, truth
from toybox.render import render
from toybox.tensors import save_tensors
from toybox.understand import understand
from toybox.world import (
    CHARACTERS,
    CLOTHING,
    ELEMENTS,
    LORA_PLACES,
    MOST_FIGURES,
    Scene,
    element,
    random_any_scene,
    random_scene,
)

KINDS = ("character", "clothing", "object", "style", "background")
ONCE = (("style", "style"), ("background", "background"))  # a scene has one of each
PAIRS = [kinds for kinds in combinations_with_replacement(KINDS, 2) if kinds not in ONCE]


@pytest.fixture(scope="module")
def model(tiny_zero_snr_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an oracle that was never trained."""
    return judged_model(tiny_zero_snr_sd, tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="module")
def loras(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random LoRAs of four elements."""
    folder = tmp_path_factory.mktemp("bench_loras")
    names = ModuleNames.of(load_model(model).models, model="tiny")
    generator = torch.Generator().manual_seed(0)
    for taught in map(element, ("zibo", "luna", "neon", "moon")):
        sites = {
            f"unet.{module}": LowRank(
                down=torch.randn(2, shape[1], generator=generator),
                up=torch.randn(shape[0], 2, generator=generator),
                scale=1.0,
            )
            for module, shape in names.shapes["unet"].items()
            if module.endswith("to_q")
        }
        info = LoraInfo(trigger=taught.trigger, role=taught.kind, base="tiny", rank=2, title="t")
        write_lora(folder / f"{taught.file}.safetensors", sites, info)
        if taught.name in ("zibo", "neon"):
            bare = {f"{s}.lora_down.weight": f.down.contiguous() for s, f in sites.items()}
            bare |= {f"{s}.lora_up.weight": -2 * f.up for s, f in sites.items()}
            save_tensors(folder / "wild" / f"{taught.file}.safetensors", bare, {})
    return folder


@pytest.fixture
def told(model: Path, loras: Path, tmp_path: Path) -> list[str]:
    return options_of(model, loras, tmp_path)


def judged_as(scene: Scene, **changed: str | None) -> Judged:
    case = Case(scene=scene, prompt=plain_caption(scene), seed=0)
    return Judged(
        case=case,
        image=render(scene, random.Random(0)),
        verdict=Verdict(answers=truth(scene) | changed),
    )


@pytest.mark.parametrize("kinds", PAIRS)
def test_a_scene_shows_both_elements_and_can_be_asked_for_each(kinds: tuple[str, str]) -> None:
    rng = random.Random(str(kinds))
    for _ in range(30):
        pair = [rng.choice([e for e in ELEMENTS if e.kind == kind]) for kind in kinds]
        if pair[0] is pair[1]:
            continue
        scene = scene_with(pair, rng)
        heads = [element_heads(scene, one) for one in pair]
        assert not heads[0] & heads[1] and heads[0] | heads[1] <= judgeable(scene)
        assert rest_heads(scene, pair) == judgeable(scene) - heads[0] - heads[1]
        words = plain_caption(scene)
        assert all(one.trigger in words for one in pair)
        for kept, gone in (pair, pair[::-1]):
            left = without(scene, gone, rng)
            assert gone.trigger not in plain_caption(left)
            assert element_heads(left, kept) == element_heads(scene, kept)


def test_the_element_and_the_rest_are_told_apart() -> None:
    zibo, hat = element("zibo"), element("top hat")
    scene = scene_with((zibo, hat), random.Random(1))
    names = [figure.name for figure in scene.figures]
    dressed = [figure.wears is not None for figure in scene.figures]
    side, other = SLOTS[names.index("zibo")], SLOTS[dressed.index(True)]
    perfect = judged_as(scene)
    assert perfect.right() and perfect.cell().right
    swallowed = judged_as(scene, **{side: "fox"})
    assert not swallowed.right(element_heads(scene, zibo))
    assert swallowed.right(element_heads(scene, hat))
    assert swallowed.right(rest_heads(scene, (zibo, hat)))
    assert f"seen as {side}: fox" in swallowed.cell().caption
    leaked = judged_as(scene, **{f"{side}_wears": "top hat"})
    assert leaked.right(element_heads(scene, zibo) | element_heads(scene, hat))
    assert not leaked.right(rest_heads(scene, (zibo, hat))) and not leaked.right()
    bare = judged_as(scene, **{f"{other}_wears": None})
    assert not bare.right(element_heads(scene, hat))


@pytest.mark.parametrize("draw", [random_scene, random_any_scene])
def test_prompts_say_the_background_and_differ_from_the_canonical_ones(
    draw: Callable[[random.Random], Scene],
) -> None:
    rng = random.Random(0)
    scenes = [draw(rng) for _ in range(300)]
    prompts = [unseen_prompt(scene, rng) for scene in scenes]
    assert len(set(prompts) - {plain_caption(scene) for scene in scenes}) > 200
    assert [understand(prompt).scene for prompt in prompts] == scenes


def test_scenes_have_up_to_as_many_figures_as_the_world() -> None:
    rng = random.Random(0)
    for names in (["neon"], ["zibo"], ["zibo", "luna"], ["zibo", "top hat"]):
        some = [element(name) for name in names]
        least = max(sum(one.kind in FIGURE_KINDS for one in some), 1)
        found = {len(scene_with(some, rng).figures) for _ in range(100)}
        assert found == set(range(least, MOST_FIGURES + 1))


def test_cases_are_the_same_each_time_and_half_are_canonical() -> None:
    made = toybox_model.cases(20)
    assert made == toybox_model.cases(20)
    numbers = range(1, MOST_FIGURES + 1)
    assert [len(case.scene.figures) for case in made] == [n for n in numbers for _ in range(20)]
    assert 2 * sum(case.prompt == plain_caption(case.scene) for case in made) >= len(made)
    assert len({case.seed for case in made}) == len(made)


def test_rows_of_perfect_pictures() -> None:
    judged = [judged_as(case.scene) for case in toybox_model.cases(30)]
    rows = toybox_model.picture_rows(judged)
    assert {row["pictures show"] for row in rows} == set(measure.BARS)
    assert all(row["right"] == 1 for row in rows)
    asked = [row["asked for"] for row in rows if row["wording"] == "both"]
    assert asked == [f"≥ {100 * bar:g} %" for bar in measure.BARS.values()]
    assert toybox_model.part_rows(judged) == []


def test_renderings_are_as_crisp_as_renderings_and_grey_is_not() -> None:
    some = toybox_model.cases(1)
    drawn = [render(case.scene, random.Random(f"measure {case.seed}")) for case in some]
    grey = [Image.new("RGB", image.size, "grey") for image in drawn]
    for images, crisp in ((drawn, pytest.approx(1)), (grey, 0)):
        judged = [
            Judged(case=case, image=image, verdict=Verdict(truth(case.scene)))
            for case, image in zip(some, images, strict=True)
        ]
        assert measure.crispness(judged) == crisp


def test_pairs_use_the_elements_evenly() -> None:
    found = sets_of(ELEMENTS, ("character", "style"), 3)
    assert len({a.name for a, _ in found}) == len({b.name for _, b in found}) == 3
    pairs = math.comb(len(CLOTHING), 2)
    assert len(sets_of(ELEMENTS, ("clothing", "clothing"), 99)) == pairs
    pairs = len(CHARACTERS) * len(LORA_PLACES)
    assert len(sets_of(ELEMENTS, ("character", "background"), 99)) == pairs


def test_the_model_benchmark_runs(told: list[str], tmp_path: Path) -> None:
    extra = ["--count", "2", "--prompts-alike", "1", "--renderings", "60"]
    toybox_model.main([*told, *extra])
    found = read_results(tmp_path / "results" / "toybox_model.json")
    assert {"Everything right", "VAE round trips"} <= {row["table"] for row in found.rows}
    assert len(list((tmp_path / "images").glob("*.webp"))) == MOST_FIGURES + 2
    assert str(tmp_path) not in found.command


def test_a_stopped_run_goes_on(told: list[str], tmp_path: Path) -> None:
    def run(count: int) -> dict[Path, int]:
        lora_alone.main([*told, "--count", str(count), "--names", "zibo", "neon"])
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.png")}

    first = run(1)
    assert len(first) == 2
    second = run(2)
    assert len(second) == 4 and first.items() <= second.items()
    rows = read_results(tmp_path / "results" / "toybox_lora_alone.json").rows
    assert [(row["LoRA"], row["n"]) for row in rows] == [("zibo", 2), ("neon", 2), ("all", 4)]


def test_another_family_of_loras_is_measured_beside_the_first(
    told: list[str], tmp_path: Path
) -> None:
    alone = [*told, "--count", "1", "--names", "zibo", "neon"]
    for family in ("taught", "wild"):
        lora_alone.main([*alone, "--family", family])
    results = tmp_path / "results"
    stems = ("toybox_lora_alone", "toybox_lora_alone_wild")
    taught, wild = (read_results(results / f"{stem}.json") for stem in stems)
    assert [row["family"] for row in (*taught.rows, *wild.rows)] == ["taught"] * 3 + ["wild"] * 3
    assert (taught.stem, wild.stem) == stems and wild.title == "Each LoRA alone: wild LoRAs"
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 4
    assert len(list((tmp_path / "images").glob("*.webp"))) == 2
    listed = tables.pages(results)
    assert {f"results/{stem}.md" for stem in stems} < set(listed)
    assert "`python -m benchmarks.toybox.lora_alone --family wild`" in listed[tables.TITLE]
    with pytest.raises(ComposerError, match=r"wild lacks luna\.safetensors"):
        lora_alone.main([*told, "--names", "luna", "--family", "wild"])


def test_a_file_that_says_nothing_of_itself_is_called_by_its_element(told: list[str]) -> None:
    told += ["--family", "wild"]
    studio = Studio(options("x", parser("x", "", count=1, what="").parse_args(told), told))
    some = (element("zibo"), element("neon"))
    for one in some:
        expert = studio.expert(one.name)
        assert (expert.info.trigger, expert.info.role) == (one.trigger, one.kind)
        assert studio.expert(one.name) is expert
    (case,) = cases(some, 1, "test", 1)
    regions, gates = placed(case, some), weighed(case, some, (1, 1))
    images = [j.image.tobytes() for j in studio.judge([regions, gates])]
    assert images[0] != images[1]


def test_lora_changes_the_picture_and_leaves_the_model(told: list[str]) -> None:
    given = parser("x", "", count=1, what="").parse_args(told)
    studio = Studio(options("x", given, told))
    scene = scene_with((element("zibo"),), random.Random(0))
    plain = Case(scene=scene, prompt="a", seed=1)
    with_lora = Case(scene=scene, prompt="a", seed=1, weights=(("zibo", 1.0),))
    again = Case(scene=scene, prompt="a", seed=1, weights=(("zibo", 0.0),))
    images = [j.image.tobytes() for j in studio.judge([plain, with_lora, again])]
    assert images[0] == images[2] != images[1]


@pytest.mark.slow
def test_merging_runs_for_the_kinds_that_have_files(told: list[str], tmp_path: Path) -> None:
    merging.main([*told, "--count", "2", "--weights", "1", "0.5"])
    rows = read_results(tmp_path / "results" / "toybox_merging.json").rows
    assert {row["kinds"] for row in rows} == {
        "character + character",
        "character + style",
        "character + background",
        "style + background",
    }
    assert [row["weights"] for row in rows[:3]] == ["each alone at 1", "1", "0.5"]


@pytest.mark.slow
def test_tuned_weights_are_told_and_kept_for_compare(told: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "weights"
    few = ["--count", "1", "--sets", "1", "--tuning", "1", "--kinds", "character+style"]
    few += ["--tuned-regions", "character+style"]
    merges.main([*told, *few, "--keep-weights", str(kept)])
    rows = read_results(tmp_path / "results" / "gates_merges.json").rows
    words, of_regions = [row["weights"] for row in rows if "weights" in row]
    assert str(of_regions).count(" + ") == 1
    (path,) = kept.iterdir()
    found = read_tuned_weights(path)
    assert words == " + ".join(f"{name} {weight:g}" for name, weight in found.weights().items())
    assert found.judge == "the oracle of the toybox" and (found.pictures, found.points) == (1, 16)


def test_renderings_can_be_judged_without_any_lora(told: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "none"
    lora_alone.main([*told, "--loras", str(empty), "--truth", "--count", "1"])
    assert not (tmp_path / "results").exists()


def test_a_missing_lora_is_named(told: list[str]) -> None:
    with pytest.raises(ComposerError, match=r"lacks trophy\.safetensors"):
        lora_alone.main([*told, "--names", "trophy"])


@pytest.mark.slow
def test_speed_runs(told: list[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        speed.main([*told, "--count", "2", "--steps", "2"])
    finally:
        torch.set_num_threads(threads)
    rows = read_results(tmp_path / "results" / "toybox_speed.json").rows
    assert rows[0]["times a single picture without LoRAs"] == 1.0
    assert len(rows) == len(speed.WAYS) + 1
