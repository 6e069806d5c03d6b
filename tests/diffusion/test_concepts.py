"""FreeFuse: whose each place is, against its definition, and what attention heeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_loras import experts_for
from torch import Tensor

from composer.diffusion.concepts import ANCHORS, PART, ConceptMaps, Concepts, grid_of, words_at
from composer.diffusion.conditioning import encode_prompts, split_into_chunks
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions, Trigger, regions_of
from composer.diffusion.request import Request
from composer.diffusion.sample import Step, denoise_pictures, generate
from composer.fusions.regions import region_gates
from composer.mixture import Mixture, attach

TRIGGERS = {
    "ada": Trigger(words="ada", role="character"),
    "ink": Trigger(words="in ink", role="clothing"),
    "sea": Trigger(words="at sea", role="style"),
}
PROMPTS = ("ada (in ink:1.2) at sea", "ada and ada at sea, in ink")
STEPS = 7


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture
def mixture(model: Model, tmp_path: Path) -> Iterator[Mixture]:
    sites = {e.name: e.sites for e in experts_for(model, tmp_path, *TRIGGERS)}
    with attach(model.models, sites, granularity="block") as mixture:
        mixture.set_gates(region_gates(mixture, dict.fromkeys(mixture.names, 0.8), concepts=True))
        yield mixture


def shape(model: Model) -> tuple[int, int, int]:
    side = model.size // model.multiple
    return model.latent_channels, side, side


def sampling(model: Model, **more: Any) -> Iterator[Any]:
    both = [
        encode_prompts(model, prompt.replace("(in ink:1.2)", "in ink"), "") for prompt in PROMPTS
    ]
    text = type(both[0].positive).joined(
        [*(c.negative for c in both if c.negative), *(c.positive for c in both)]
    )
    return denoise_pictures(
        model, text, [3, 4], shape(model), sampler="DDIM", steps=STEPS, cfg_scale=3.0, **more
    )


def found(model: Model, mixture: Mixture, prompts: tuple[str, ...] = PROMPTS) -> ConceptMaps:
    maps = Concepts(model, mixture, TRIGGERS).of(prompts)
    maps.prepare(torch.zeros(len(prompts), *shape(model)), lambda: sampling(model))
    return maps


def test_words_are_found_at_their_tokens_in_any_chunk(model: Model) -> None:
    (tokenizer,) = (encoder.tokenizer for encoder in model.encoders.values())
    for prompt in (*PROMPTS, "a cat BREAK [ada], in ink", "x " * 90 + "in ink"):
        (chunks,) = split_into_chunks(model, prompt).values()
        ids = [token for chunk in chunks for token in chunk.ids]
        for words in ("ada", "in ink"):
            wanted = tokenizer(words, add_special_tokens=False).input_ids
            places = words_at(model, prompt, words)
            assert [ids[place] for place in places] == wanted * prompt.count(words)
    assert words_at(model, "a cat", "ada") == words_at(model, "a cat", " ") == []


@torch.no_grad()
def test_each_place_is_whose_the_definition_says(model: Model, mixture: Mixture) -> None:
    """By diffusers' own attention scores, place by place, in float64."""
    caught: dict[str, Any] = {}
    blocks: Any = model.unet.up_blocks
    names = [name for name, _ in blocks.named_modules() if name.endswith("transformer_blocks.0")]
    handles = []
    for name in names:
        block = blocks.get_submodule(name)

        def look(attention: Any, args: Any, kwargs: Any, name: str = name) -> None:
            query, key = (
                attention.head_to_batch_dim(each)
                for each in (
                    attention.to_q(args[0]),
                    attention.to_k(kwargs["encoder_hidden_states"]),
                )
            )
            caught[name] = attention.get_attention_scores(query, key)

        def keep(_: Any, __: Any, out: Tensor, name: str = name) -> None:
            caught[f"{name} self"] = out

        handles.append(block.attn2.register_forward_pre_hook(look, with_kwargs=True))
        handles.append(block.attn1.register_forward_hook(keep))
    mixture.set_region_maps(None)
    for number, _ in enumerate(sampling(model), 1):
        if number == math.ceil(STEPS * PART):
            break
    for handle in handles:
        handle.remove()
    sizes = {name: caught[f"{name} self"].shape[1] for name in names}
    name = max(names, key=lambda each: sizes[each])
    places, heads = sizes[name], blocks.get_submodule(name).attn2.heads
    weights = caught[name].double().reshape(2, 2, heads, places, -1)[1]  # with the prompt
    hidden = caught[f"{name} self"].double()[2:]
    maps = found(model, mixture)
    given = maps.maps(torch.zeros(2, *shape(model)), torch.tensor(0)).flatten(2)
    assert given.shape == (2, 3, places)
    for picture, prompt in enumerate(PROMPTS):
        words = [words_at(model, prompt, TRIGGERS[one].words) for one in ("ada", "ink")]
        scores = [
            [
                sum(float(weights[picture, h, p, t]) for h in range(heads) for t in at) / len(at)
                for p in range(places)
            ]
            for at in words
        ]
        likeness = []
        for mine, others in ((0, 1), (1, 0)):
            contrast = [2 * scores[mine][p] - scores[others][p] for p in range(places)]
            ranked = sorted(range(places), key=lambda p: -contrast[p])
            anchors = ranked[: max(1, int(places * ANCHORS))]
            near = [
                sum(float(hidden[picture, a] @ hidden[picture, p]) for a in anchors) / len(anchors)
                for p in range(places)
            ]
            total = sum(math.exp(value / 1000) for value in near)
            likeness.append([math.exp(value / 1000) / total for value in near])
        owner = [0.0 if likeness[0][p] >= likeness[1][p] else 1.0 for p in range(places)]
        assert given[picture, 1].tolist() == owner
        assert given[picture, 0].tolist() == [1 - one for one in owner]
    assert bool((given[:, 2] == 1).all()), "a style acts everywhere"
    assert 0 < float(given[:, 0].mean()) < 1


@torch.no_grad()
def test_attention_heeds_the_words_of_a_places_owner(model: Model, mixture: Mixture) -> None:
    maps = found(model, mixture)
    held = maps.maps(torch.zeros(2, *shape(model)), torch.tensor(0))
    block: Any = model.unet.up_blocks.get_submodule("1.attentions.0.transformer_blocks.0")  # pyright: ignore
    places = held.shape[-2] * held.shape[-1]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, places, block.attn2.to_q.in_features, generator=generator)
    words = torch.randn(4, model.token_limit, 32, generator=generator)
    plain = block.attn2(hidden, encoder_hidden_states=words)
    with maps.guiding():
        bent = block.attn2(hidden, encoder_hidden_states=words)
    torch.testing.assert_close(bent[:2], plain[:2], msg="rows without the prompt")
    attention = block.attn2
    query, key, value = (
        attention.head_to_batch_dim(each)
        for each in (attention.to_q(hidden), attention.to_k(words), attention.to_v(words))
    )
    bias = torch.zeros(4, places, model.token_limit)
    for picture, prompt in enumerate(PROMPTS):
        for index, name in enumerate(("ada", "ink")):
            for token in words_at(model, prompt, TRIGGERS[name].words):
                bias[2 + picture, :, token] = 2 * held[picture, index].flatten() - 1
    logits = attention.scale * query @ key.transpose(1, 2)
    wanted = (logits + bias.repeat_interleave(attention.heads, 0)).softmax(-1) @ value
    wanted = attention.to_out[0](attention.batch_to_head_dim(wanted))
    torch.testing.assert_close(bent, wanted, rtol=1e-4, atol=1e-5)
    assert float((bent[2:] - plain[2:]).abs().max()) > 1e-3
    again = block.attn2(hidden, encoder_hidden_states=words)
    assert torch.equal(again, plain), "nothing is left behind"


@torch.no_grad()
def test_keys_of_others_words_are_left_alone(model: Model, mixture: Mixture) -> None:
    maps = found(model, mixture)
    noisy = torch.randn(2, *shape(model), generator=torch.Generator().manual_seed(0))
    maps.update(noisy, torch.tensor(100), 0)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    site: Any = mixture.sites[f"unet.{path}"]
    caught: list[tuple[Tensor, Tensor]] = []
    handle = site.register_forward_hook(lambda _, args, out: caught.append((args[0], out.clone())))
    # the negative prompt is longer, in a chunk more: as many tokens as the picture has places
    words = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(1))
    held = maps.maps(noisy, torch.tensor(100))
    assert model.token_limit < 64 and held.shape[-2:] == (8, 8)
    for told in (True, False):
        if not told:
            mixture.set_region_maps(held)
        model.unet(torch.cat([noisy, noisy]), torch.tensor(100), encoder_hidden_states=words)
    handle.remove()
    (given, output), (_, meant) = caught
    wanted, mean = site.base(given), site.base(given)
    for index, name in enumerate(mixture.names):
        mine = site.owner == index
        delta = given @ site.down[mine].T @ site.up[:, mine].T
        mean = mean + 0.8 * held[:, index].mean((1, 2)).repeat(2)[:, None, None] * delta
        allowed = torch.ones(4, given.shape[1], 1)
        for picture, prompt in enumerate(PROMPTS):
            other = {"ada": "ink", "ink": "ada"}.get(name)  # a style may change all
            if other:
                allowed[2 + picture, words_at(model, prompt, TRIGGERS[other].words)] = 0
        wanted = wanted + 0.8 * allowed * delta
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(meant, mean, rtol=1e-4, atol=1e-5)


def test_one_alone_acts_everywhere_and_no_step_is_made_first(
    model: Model, mixture: Mixture
) -> None:
    maps = Concepts(model, mixture, TRIGGERS).of(("ada at sea", "a cat"))
    maps.prepare(torch.zeros(2, *shape(model)), lambda: pytest.fail("a step was made"))
    given = maps.maps(torch.zeros(2, *shape(model)), torch.tensor(0))
    assert given.flatten(1).tolist() == [[1, 0, 1], [0, 0, 0]]
    mixture.toggle("ink", False)
    assert found(model, mixture).called.tolist() == [[True] * 2, [False] * 2, [True] * 2]


def test_gates_over_these_maps_ask_for_them(model: Model, mixture: Mixture) -> None:
    class Called:
        def __init__(self, name: str) -> None:
            self.name, self.trigger, self.role = name, TRIGGERS[name].words, TRIGGERS[name].role

    finder = regions_of(model, mixture, map(Called, mixture.names))
    assert isinstance(finder, Concepts)
    request = Request(prompt=PROMPTS[1], seed=5, steps=4, cfg_scale=3.0, sampler="DDIM")
    *_, first = (e.latents for e in generate(model, request, regions=finder) if isinstance(e, Step))
    *_, same = (e.latents for e in generate(model, request, regions=finder) if isinstance(e, Step))
    assert torch.equal(first, same)
    mixture.set_gates(region_gates(mixture, dict.fromkeys(mixture.names, 0.8)))
    other = regions_of(model, mixture, map(Called, mixture.names))
    assert type(other) is Regions


@pytest.mark.parametrize(
    ("places", "size", "grid"),
    [(64, (16, 16), (8, 8)), (32, (8, 16), (4, 8)), (6, (5, 3), (3, 2)), (1, (8, 8), (1, 1))],
)
def test_the_grid_of_so_many_places(
    places: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert grid_of(places, size) == grid
