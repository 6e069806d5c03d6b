"""Published ways of fusing, from the recipe to the prediction, each against its definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from studio_pictures import finished, ready
from tiny_loras import write_lora
from torch import Tensor
from torch.nn import functional

from composer.diffusion.conditioning import Text, encode_prompts
from composer.diffusion.denoise import guide, predict
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts import Expert
from composer.experts.low_rank import LowRank
from composer.fusions import (
    PLAIN,
    RECIPES,
    LoraRow,
    Pin,
    Plan,
    Recipe,
    Sum,
    merges,
    read_recipe,
    recorded_recipe,
)
from composer.fusions.merging import merge_experts, ties
from composer.fusions.places import Place
from composer.fusions.rows import PARTS
from composer.settings import fields_of
from composer.studio import ComposeRequest, Started, Studio
from composer.studio.engine import Engine
from composer.training.gates.prompts import Called, draft_prompts
from composer.ui.gate_views import parameters_view, with_parameters

WEIGHTS = {"moon": 0.5, "neon": 1.5, "zibo": 0.8}
ROLES = {"moon": "background", "neon": "style", "zibo": "character"}
TRIGGERS = {"moon": "on the moon", "neon": "in neon style", "zibo": "zibo fox"}
PROMPT = "a zibo fox and a cat on the moon"
CFG = 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("methods") / "loras"
    for seed, name in enumerate(WEIGHTS):
        card = {"composer.role": ROLES[name], "modelspec.trigger_phrase": TRIGGERS[name]}
        write_lora(made / f"{name}.safetensors", seed=seed, **card)
    return made


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return ready(tiny_sd, folder, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def engine(tiny_sd: Path) -> Engine:
    return Engine.load(str(tiny_sd), device="cpu", dtype=None)


def read(engine: Engine, folder: Path, name: str) -> Mapping[str, LowRank]:
    return engine.read(name, folder / f"{name}.safetensors").sites


def drafts(expert: Expert) -> tuple[str, ...]:
    """The prompts that call it alone."""
    one = Called(name=expert.name, trigger=expert.info.trigger, role=expert.info.role)
    return draft_prompts([one], count=4).alone[expert.name]


def mixed(
    engine: Engine, folder: Path, recipe: Recipe, names: Sequence[str] = tuple(WEIGHTS)
) -> Any:
    """The mixture with these LoRAs so fused."""
    rows = {name: LoraRow(name=name, weight=WEIGHTS[name]) for name in names}
    paths = {name: folder / f"{name}.safetensors" for name in names}
    engine.mix(Plan(recipe=recipe, rows=rows, paths=paths))
    return engine.mixture


def step(engine: Engine, batch: int = 2) -> tuple[Tensor, Tensor, Text]:
    """Latents, their timestep and the prompt's text without and with LoRAs in the encoder."""
    noisy = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    text = encode_prompts(engine.model, PROMPT, "").rows.repeated(batch)
    return noisy, torch.tensor(500), text


@torch.no_grad()
def predicted(engine: Engine, batch: int = 2, number: int = 0, total: int = 12) -> Tensor:
    """What a sampling of the recipe that is attached predicts."""
    noisy, timestep, text = step(engine, batch)
    engine.at_step(number, total)
    passes = engine.in_passes()
    if passes is None:
        return predict(engine.model, noisy, timestep, text, CFG)
    return passes.of([PROMPT] * batch).predict(noisy, timestep, (number, total), text, CFG)


@torch.no_grad()
def parts(engine: Engine, weights: Sequence[float], text: Text) -> tuple[Tensor, Tensor]:
    """The predictions without and with the prompt of constant weights in the U-Net."""
    assert engine.mixture is not None
    noisy, timestep, _ = step(engine)
    engine.mixture.set_weights(
        {n: {"unet": w, "text_encoder": 0.0} for n, w in zip(WEIGHTS, weights, strict=True)}
    )
    twice = torch.cat([noisy, noisy])
    without, with_prompt = predict(engine.model, twice, timestep, text).chunk(2)
    return without, with_prompt


def alone(engine: Engine, folder: Path) -> tuple[Tensor, Tensor]:
    """Those of the bare U-Net and of each LoRA alone: (4, pictures, channels, h, w) each."""
    mixed(engine, folder, Sum())
    _, _, text = step(engine)  # read with the LoRAs added up, as for every method
    sets = [[0.0] * 3, *(WEIGHTS[n] * row for n, row in zip(WEIGHTS, torch.eye(3), strict=True))]
    found = [parts(engine, [float(w) for w in some], text) for some in sets]
    without, with_prompt = zip(*found, strict=True)
    return torch.stack(without), torch.stack(with_prompt)


def told(studio: Studio, asked: ComposeRequest) -> tuple[str, ...]:
    """The notes before the picture."""
    (first,) = (event for event in studio.compose(asked) if isinstance(event, Started))
    return first.notes


Oracle = Callable[[Tensor, Tensor], Tensor]


def composite(without: Tensor, with_prompt: Tensor) -> Tensor:
    return torch.stack(
        [guide(a, b, CFG) for a, b in zip(without[1:], with_prompt[1:], strict=True)]
    ).mean(0)


def cmlora(without: Tensor, with_prompt: Tensor) -> Tensor:
    """At step 0 the character is ahead."""
    count = 3
    ahead = (count - 0.5) * count / (count - 0.5 + count - 1)
    behind = count / (count - 0.5 + count - 1)
    shares = [behind, behind, ahead]
    assert sum(shares) == pytest.approx(count)
    both = [
        sum(share * made for share, made in zip(shares, some[1:], strict=True)) / count
        for some in (without, with_prompt)
    ]
    return guide(both[0], both[1], CFG)


def loratorio(without: Tensor, with_prompt: Tensor) -> Tensor:
    def patched(some: Tensor) -> Tensor:
        out = torch.zeros_like(some[0])
        for picture, y, x in itertools.product(range(2), range(0, 8, 4), range(0, 8, 4)):
            cell = some[:, picture, :, y : y + 4, x : x + 4]
            alike = [
                float(functional.cosine_similarity(c.flatten(), cell[0].flatten(), dim=0))
                for c in cell[1:]
            ]
            shares = torch.softmax(-torch.tensor(alike) / 0.1, 0)
            mixed = sum(share * c for share, c in zip(shares, cell[1:], strict=True))
            out[picture, :, y : y + 4, x : x + 4] = mixed
        return out

    return guide(0.5 * without[0] + 0.5 * patched(without), patched(with_prompt), CFG)


@pytest.mark.parametrize(
    ("key", "oracle"), [("composite", composite), ("cmlora", cmlora), ("loratorio", loratorio)]
)
def test_predictions_of_each_alone_are_mixed_as_published(
    engine: Engine, folder: Path, key: str, oracle: Oracle
) -> None:
    wanted = oracle(*alone(engine, folder))
    mixed(engine, folder, read_recipe(key))
    torch.testing.assert_close(predicted(engine), wanted, rtol=1e-4, atol=1e-4)


def test_without_the_prompt_asymmetric_guidance_has_no_loras(engine: Engine, folder: Path) -> None:
    without, _ = alone(engine, folder)
    mixed(engine, folder, Sum())
    _, _, text = step(engine)
    _, summed = parts(engine, list(WEIGHTS.values()), text)
    mixed(engine, folder, read_recipe("asymmetric"))
    wanted = guide(without[0], summed, CFG)
    torch.testing.assert_close(predicted(engine), wanted, rtol=1e-4, atol=1e-4)


def test_loras_take_turns_the_character_first(engine: Engine, folder: Path) -> None:
    """Without guidance, in one pass: at each step one LoRA has its weight."""
    mixture = mixed(engine, folder, read_recipe("switch:turn=2"))
    on: list[str] = []
    for index in range(14):
        engine.at_step(index, 14)
        weights = dict(zip(mixture.names, mixture.routings["unet"].weights.tolist(), strict=True))
        (name,) = (name for name, weight in weights.items() if weight)
        assert weights[name] == pytest.approx(WEIGHTS[name])
        on.append(name)
    turns = ["zibo", "neon", "moon"]
    assert on == [turns[index // 2 % 3] for index in range(14)]
    # the prompt is read before the first step, with all of them
    mixture.at_rest()
    every = list(WEIGHTS.values())
    assert mixture.routings["unet"].weights.tolist() == pytest.approx(every)
    engine.at_step(3, 14)
    assert mixture.routings["text_encoder"].weights.tolist() == pytest.approx(every)


def test_turns_are_as_long_as_the_prompt_needs_each_lora(engine: Engine, folder: Path) -> None:
    mixed(engine, folder, read_recipe("w-switch:tail=2"))

    def mean(prompt: str) -> Tensor:
        return encode_prompts(engine.model, prompt, None).positive.states.mean(1)

    whole = mean(PROMPT)
    less = {"moon": "a zibo fox and a cat", "zibo": "a and a cat on the moon"}  # neon is not named
    needed = {n: float(1 - functional.cosine_similarity(whole, mean(p))) for n, p in less.items()}
    needed = {n: max(0.05, needed.get(n, 0.0)) for n in WEIGHTS}
    turns = {n: max(1, round(5 * need / max(needed.values()))) for n, need in needed.items()}
    passes = engine.in_passes()
    assert passes is not None
    passes = passes.of([PROMPT, "a cat"]).passes
    cycle = ["zibo"] * turns["zibo"] + ["moon"] * turns["moon"] + ["neon"] * turns["neon"]
    other = [name for name in ("zibo", "moon", "neon") for _ in range(5)]  # needed alike
    for index in range(20):
        _, rows = passes.rows(index, 20)
        for picture, order in enumerate((cycle, other)):
            now = "zibo" if index >= 18 else order[index % len(order)]
            wanted = [WEIGHTS[n] if n == now else 0.0 for n in WEIGHTS]
            assert rows[0, picture].tolist() == pytest.approx(wanted), (index, picture)


def test_k_lora_picks_one_at_each_matrix_and_step(engine: Engine, folder: Path) -> None:
    names = ("neon", "zibo")
    mixture = mixed(engine, folder, read_recipe("k-lora"), names)
    deltas = {
        name: {site: factors.dense().abs() for site, factors in read(engine, folder, name).items()}
        for name in names
    }
    sites = [site for site in deltas["neon"] if site.startswith("unet.")]
    gamma = sum(float(deltas["zibo"][s].sum()) for s in sites)
    gamma /= sum(float(deltas["neon"][s].sum()) for s in sites)
    for index in range(10):
        engine.at_step(index, 10)
        for site in sites:
            top = {n: float(deltas[n][site].flatten().topk(16).values.sum()) for n in names}
            style = top["neon"] * gamma * (1.5 * index / 10 + 0.5) > top["zibo"]
            wanted = [WEIGHTS["neon"] * style, WEIGHTS["zibo"] * (not style)]
            assert mixture.routings[site].weights.tolist() == pytest.approx(wanted)
    # in the end the style has gained enough for all of them
    ends = {tuple(weight > 0 for weight in mixture.routings[s].weights.tolist()) for s in sites}
    assert ends == {(True, False)}


def test_a_merge_is_one_lora_of_all(engine: Engine, folder: Path) -> None:
    found = mixed(engine, folder, read_recipe("ties:density=0.3"))
    assert len(found.names) == 1 and found.weights[found.names[0]]["unet"] == 1.0
    experts = [engine.read(name, folder / f"{name}.safetensors") for name in WEIGHTS]
    given = [{"unet": w, "text_encoder": w} for w in WEIGHTS.values()]
    merged, _ = merge_experts(experts, given, lambda site, some, here: ties(some, 0.3), 0)
    with torch.no_grad():
        predicted_ = predicted(engine)
        for site, factors in merged.sites.items():
            found.sites[site].base.weight += factors.dense()
        try:
            found.set_weights({found.names[0]: 0.0})
            torch.testing.assert_close(predicted(engine), predicted_, rtol=1e-3, atol=1e-3)
        finally:
            for site, factors in merged.sites.items():
                found.sites[site].base.weight -= factors.dense()


def test_the_inputs_of_sites_are_those_of_each_lora_painting_alone(
    engine: Engine, folder: Path
) -> None:
    experts = {n: engine.read(n, folder / f"{n}.safetensors") for n in ("moon", "zibo")}
    engine.mix(Plan(recipe=Sum(), rows={}, paths={}))
    seen = engine.observe(experts)
    assert seen.keys() == {site for site in experts["zibo"].sites if site.startswith("unet.")}
    for site, each in seen.items():
        width = experts["zibo"].sites[site].down.shape[1]
        assert [tuple(x.shape) for x in each] == [(512, width)] * 2
        assert all(len(x.unique(dim=0)) > 100 for x in each)
    again = engine.observe(experts)
    assert all(torch.equal(a, b) for s in seen for a, b in zip(seen[s], again[s], strict=True))
    # cross-attention reads the words, which are those of each LoRA's own prompts
    words = next(site for site in seen if site.endswith("attn2.to_k"))
    with torch.no_grad():
        assert engine.mixture is not None
        engine.mixture.set_weights({"moon": 1.0, "zibo": 0.0})
        text = [encode_prompts(engine.model, p, "").rows.states for p in drafts(experts["moon"])]
    known = torch.cat([rows.flatten(0, 1) for rows in text])
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(seen[words][0], known, compute_mode=exact).min(1).values
    assert float(apart.max()) < 1e-4
    silent = replace(experts["moon"], info=replace(experts["moon"].info, trigger=""))
    with pytest.raises(ComposerError, match="names no trigger word"):
        engine.observe({"moon": silent})


def test_together_as_strong_as_the_strongest(engine: Engine, folder: Path) -> None:
    mixture = mixed(engine, folder, read_recipe("energy"))
    for part in ("unet", "text_encoder"):
        deltas: dict[str, Tensor] = {}
        for name in WEIGHTS:
            sites = read(engine, folder, name)
            kept = [f.dense().flatten() for s, f in sorted(sites.items()) if s.startswith(part)]
            deltas[name] = torch.cat(kept)
        weights = {name: mixture.weights[name][part] for name in WEIGHTS}
        ratios = [weights[name] / WEIGHTS[name] for name in WEIGHTS]
        assert ratios == pytest.approx([ratios[0]] * 3) and ratios[0] < 1
        together = sum(weights[name] * deltas[name] for name in WEIGHTS)
        strongest = max(float(WEIGHTS[name] * deltas[name].norm()) for name in WEIGHTS)
        assert float(together.norm()) == pytest.approx(strongest, rel=1e-4)
    mixture = mixed(engine, folder, read_recipe("energy:strength=9"))
    assert mixture.weights["neon"]["unet"] == 1.5  # never stronger than asked for
    mixture = mixed(engine, folder, read_recipe("energy"), ["neon"])
    assert mixture.weights["neon"]["unet"] == pytest.approx(1.5)


def test_text_encoders_of_sdxl_share_a_weight(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Rows weigh the U-Net and the text encoders, of which SDXL has two."""
    shapes = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (32, 80),
        "lora_te1_text_model_encoder_layers_0_self_attn_v_proj": (32, 32),
        "lora_te2_text_model_encoder_layers_0_self_attn_v_proj": (48, 48),
    }
    for name in ("neon", "zibo"):
        tensors: dict[str, Tensor] = {}
        for site, (out, into) in shapes.items():
            tensors[f"{site}.lora_down.weight"] = torch.randn(4, into)
            tensors[f"{site}.lora_up.weight"] = torch.randn(out, 4)
        save_file(tensors, tmp_path / f"{name}.safetensors")
    engine = Engine.load(str(tiny_sdxl), device="cpu", dtype=None)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("neon", "zibo")}
    rows = {name: LoraRow(name=name, weight=0.5, text_encoder=0.25) for name in paths}
    for key in ("weighted", "nla", "energy:strength=9"):
        engine.mix(Plan(recipe=read_recipe(key), rows=rows, paths=paths))
        assert engine.mixture is not None
        assert engine.mixture.weights["zibo"] == {
            "unet": 0.5,
            "text_encoder": 0.5 if key == "nla" else 0.25,
            "text_encoder_2": 0.5 if key == "nla" else 0.25,
        }
    for recipe in PLAIN:
        if getattr(recipe, "observes", False) or recipe.kind == "w-switch":
            continue  # without trigger words
        engine.mix(Plan(recipe=recipe, rows=rows, paths=paths))
        assert engine.mixture is not None
        assert {site.split(".")[0] for site in engine.mixture.sites} == {*engine.model.models}


@pytest.mark.parametrize("key", ["regmean:alpha=0.25", "ziplora:overlap=0.5"])
def test_where_a_site_is_too_large_the_sum_is_taken_and_told(
    engine: Engine, folder: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("neon", "zibo")
    mixed(engine, folder, read_recipe("weighted"), names)
    added = predicted(engine)
    mixed(engine, folder, read_recipe(key), names)
    assert not engine.notes
    assert float((predicted(engine) - added).abs().max()) > 1e-3
    engine.release()
    monkeypatch.setattr(merges, "MOST_INPUTS", 0)
    mixed(engine, folder, read_recipe(key + ",rank=4096"), names)  # not what is kept of before
    torch.testing.assert_close(predicted(engine), added, rtol=1e-4, atol=1e-4)
    assert any("too much memory at 3 sites" in note for note in engine.notes)


def test_what_was_fused_before_does_not_matter(engine: Engine, folder: Path) -> None:
    names = ("neon", "zibo")
    fresh: dict[str, Tensor] = {}
    recipes = [r if r.kind != "svd" else read_recipe("svd:rank=3") for r in PLAIN]
    for recipe in recipes:
        engine.release()
        mixed(engine, folder, recipe, names)
        fresh[recipe.key] = predicted(engine, number=3)
        assert bool(fresh[recipe.key].isfinite().all())
    for recipe in (*reversed(recipes), *recipes):
        mixed(engine, folder, recipe, names)
        torch.testing.assert_close(predicted(engine, number=3), fresh[recipe.key], rtol=0, atol=0)
    pairs = itertools.combinations(fresh.items(), 2)
    same = {(a, b) for (a, one), (b, other) in pairs if torch.allclose(one, other, atol=1e-5)}
    # regions without maps and places without any, as here, are a sum; and a LoRA's turn is its turn
    sums, turns = {"weighted", "regions", "freefuse", "places"}, {"switch", "w-switch", "k-lora"}
    assert all(set(pair) <= sums or set(pair) <= turns for pair in same)


@pytest.mark.parametrize("recipe", PLAIN, ids=lambda recipe: recipe.kind)
def test_every_way_paints_and_its_picture_makes_itself_again(
    studio: Studio, recipe: Recipe
) -> None:
    request = Request(prompt=PROMPT, steps=3, cfg_scale=CFG, seed=4, width=16, height=16)
    rows = tuple(LoraRow(name=name, weight=WEIGHTS[name]) for name in ("neon", "zibo"))
    asked = ComposeRequest(request=request, rows=rows, recipe=recipe)
    (picture,) = finished(studio.compose(asked)).pictures
    again = studio.recall(studio.history.read(picture.path)).asked
    assert again.recipe == recipe
    (second,) = finished(studio.compose(again)).pictures
    assert second.image().tobytes() == picture.image().tobytes()


@pytest.mark.parametrize("kind", [recipe.kind for recipe in PLAIN])
def test_parameters_come_back_from_keys_records_and_the_page(kind: str) -> None:
    usual = RECIPES[kind]()
    assert usual.key == kind and len(parameters_view(usual)) == 4
    assert not {*usual.parameters} & {*PARTS, "name", "hash", "pins", "switches", "strengths"}
    changed: dict[str, Any] = {}
    for name, value in usual.parameters.items():
        about = fields_of(type(usual))[name][1]
        if isinstance(value, str):
            changed[name] = "by chance"
        else:
            changed[name] = value + 1 if isinstance(value, int) else value / 2
            assert about.at_most is not None and about.help.endswith(".") and about.label
    other = RECIPES[kind](**changed)
    assert read_recipe(other.key) == other
    shown = parameters_view(other)
    values = [view.get("value") for view in shown]
    assert with_parameters(usual, values) == other
    assert with_parameters(other, [None] * 4) == usual
    for name, value in usual.parameters.items():
        if not isinstance(value, str):
            with pytest.raises(ComposerError, match=name):
                read_recipe(f"{kind}:{name}=1e9")


def test_a_lora_acts_in_its_place_and_one_without_a_place_everywhere(
    engine: Engine, folder: Path
) -> None:
    """Away from the border, which is soft: moon everywhere, neon on the left, zibo on the right."""
    mixed(engine, folder, Sum())
    summed = predicted(engine)
    _, _, text = step(engine)  # read with the LoRAs added up, as for every method
    sides = [
        guide(
            *parts(engine, [w * on for w, on in zip(WEIGHTS.values(), some, strict=True)], text),
            CFG,
        )
        for some in ((1, 1, 0), (1, 0, 1))
    ]
    paths = {name: folder / f"{name}.safetensors" for name in WEIGHTS}

    def placed(**places: Place) -> Tensor:
        rows = {n: LoraRow(name=n, weight=w, place=places.get(n)) for n, w in WEIGHTS.items()}
        engine.mix(Plan(recipe=read_recipe("places"), rows=rows, paths=paths))
        return predicted(engine)

    halves = Place.rectangle(0, 0, 0.5, 1), Place.rectangle(0.5, 0, 1, 1)
    found = placed(neon=halves[0], zibo=halves[1])
    torch.testing.assert_close(found[..., :3], sides[0][..., :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[..., 5:], sides[1][..., 5:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[..., :3], sides[1][..., :3], atol=1e-3)
    whole = placed(zibo=Place.rectangle(0, 0, 1, 1))
    torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(placed(), summed, rtol=0, atol=0)


def test_a_picture_with_places_makes_itself_again(studio: Studio) -> None:
    request = Request(prompt=PROMPT, steps=2, cfg_scale=CFG, seed=4, width=16, height=16)
    rows = (
        LoraRow(name="neon", weight=2.0, place=Place.rectangle(0, 0, 0.5, 1)),
        LoraRow(name="zibo", weight=2.0),
    )
    asked = ComposeRequest(request=request, rows=rows, recipe=read_recipe("places"))
    (picture,) = finished(studio.compose(asked)).pictures
    again = studio.recall(studio.history.read(picture.path)).asked
    assert again.rows == rows
    (second,) = finished(studio.compose(again)).pictures
    assert second.image().tobytes() == picture.image().tobytes()
    bare = replace(asked, rows=tuple(replace(row, place=None) for row in rows))
    (other,) = finished(studio.compose(bare)).pictures
    assert other.image().tobytes() != picture.image().tobytes()
    tagged = replace(asked, request=replace(request, prompt=f"{PROMPT} <lora:neon:2>"), rows=rows)
    (third,) = finished(studio.compose(tagged)).pictures
    assert third.image().tobytes() == picture.image().tobytes()


def test_a_place_that_is_not_used_or_does_not_fit_is_told(studio: Studio) -> None:
    place = replace(Place.rectangle(0, 0, 0.5, 1), shape=(512, 768))
    rows = (LoraRow(name="neon", place=place), LoraRow(name="zibo"))
    request = Request(prompt=PROMPT, steps=1, width=16, height=16)
    asked = ComposeRequest(request=request, rows=rows)
    notes = told(studio, asked)
    assert any("neon: its place was not used" in note for note in notes)
    with pytest.raises(ComposerError, match="512 x 768 pixels, and the picture has 16 x 16"):
        finished(studio.compose(replace(asked, recipe=read_recipe("places"))))
    rows = tuple(replace(row, place=None) for row in rows)
    notes = told(studio, replace(asked, rows=rows, recipe=read_recipe("places")))
    assert any("No place is drawn" in note for note in notes)


def test_what_cannot_be_is_said_before_any_work(studio: Studio) -> None:
    request = Request(prompt="a fox", steps=2, width=16, height=16)
    three = tuple(LoraRow(name=name) for name in WEIGHTS)
    k_lora = ComposeRequest(request=request, rows=three, recipe=read_recipe("k-lora"))
    with pytest.raises(ComposerError, match="for 2 LoRAs, and 3 are chosen: moon, neon, zibo"):
        finished(studio.compose(k_lora))
    limited = (LoraRow(name="zibo", steps=(0.0, 0.5)), LoraRow(name="neon"))
    pins = (Pin.read("mid_block*: neon=1"),)
    for recipe in PLAIN:
        if recipe.kind in ("weighted", "nla", "energy", "regions", "freefuse"):
            continue
        for more in ({"rows": limited}, {"rows": three[:2], "pins": pins}):
            asked = ComposeRequest(request=request, recipe=recipe, **more)
            with pytest.raises(ComposerError, match=r"takes all LoRAs as one|for 2 LoRAs"):
                finished(studio.compose(asked))


def test_a_record_with_broken_parameters_is_no_recipe(studio: Studio) -> None:
    assert recorded_recipe({"name": "ties", "density": 0.25}) == read_recipe("ties:density=0.25")
    for broken in (7, "x", None, [], True, float("nan"), 10**400):
        assert recorded_recipe({"name": "ties", "density": broken}) is None
