"""Embeddings in prompts: against diffusers' own loading, and for SDXL against encoders whose
vocabulary really has the words."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from composer.diffusion.conditioning import (
    count_chunks,
    encode_ids,
    encode_texts,
    split_into_chunks,
)
from composer.diffusion.load import load_model
from composer.diffusion.model import Model, TextEncoder
from composer.diffusion.request import Request
from composer.diffusion.sample import Step, generate
from composer.errors import ComposerError
from composer.experts.embedding import Embedding


def embedding(name: str, count: int, seed: int = 0, **widths: int) -> Embedding:
    generator = torch.Generator().manual_seed(seed)
    sizes = widths or {"": 32}
    vectors = {part: torch.randn(count, w, generator=generator) for part, w in sizes.items()}
    return Embedding(name=name, path=Path(f"{name}.safetensors"), vectors=vectors)


XL = {"text_encoder": 32, "text_encoder_2": 48}


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> Model:
    return load_model(tiny_sdxl)


@pytest.mark.parametrize("count", [1, 4])
def test_as_diffusers_reads_it(model: Model, tiny_sd: Path, count: int) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_sd, local_files_only=True)
    bad = embedding("bad", count)
    pipeline.load_textual_inversion({"bad": bad.vectors[""]}, token="bad")
    wanted, negative = pipeline.encode_prompt("a bad fox", "cpu", 1, True, "ink, bad")
    texts = ["a Bad fox", "ink, <embedding:bad>"]
    ours = encode_texts(model, texts, embeddings=[bad])
    torch.testing.assert_close(ours[0].states, wanted)
    torch.testing.assert_close(ours[1].states, negative)
    (unlike,) = encode_texts(model, ["a Bad fox"])
    assert not torch.allclose(unlike.states, wanted)


def with_words(model: Model, *embeddings: Embedding) -> tuple[Model, dict[str, dict[str, int]]]:
    """The model with the vectors in its encoders' own vocabularies, and the first id of each."""
    encoders: dict[str, TextEncoder] = {}
    first: dict[str, dict[str, int]] = {}
    for part, encoder in model.encoders.items():
        network = copy.deepcopy(encoder.network)
        table = network.get_input_embeddings().weight.data
        first[part] = {}
        for each in embeddings:
            first[part][each.name] = len(table)
            table = torch.cat([table, each.vectors[part]])
        network.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
        encoders[part] = replace(encoder, network=network)
    return replace(model, encoders=encoders), first


def test_both_encoders_of_sdxl_read_their_own(sdxl: Model) -> None:
    hat, owl = embedding("hat", 2, **XL), embedding("owl", 3, seed=1, **XL)
    whole, first = with_words(sdxl, hat, owl)
    ids: dict[str, torch.Tensor] = {}
    for part, encoder in sdxl.encoders.items():
        tokens = encoder.tokenizer
        inner = [
            *tokens("a", add_special_tokens=False).input_ids,
            *range(first[part]["hat"], first[part]["hat"] + 2),
            *tokens(", in", add_special_tokens=False).input_ids,
            *range(first[part]["owl"], first[part]["owl"] + 3),
        ]
        row = [tokens.bos_token_id, *inner, tokens.eos_token_id]
        ids[part] = torch.tensor([row + [tokens.pad_token_id] * (32 - len(row))])
    with torch.no_grad():
        wanted = encode_ids(whole, ids)
    (ours,) = encode_texts(sdxl, ["a hat, in owl"], embeddings=[owl, hat])
    torch.testing.assert_close(ours.states, wanted.states)
    torch.testing.assert_close(ours.pooled, wanted.pooled)
    # the encoders are left as they were
    (plain,) = encode_texts(sdxl, ["a hat, in owl"])
    assert not torch.allclose(plain.states, ours.states)


def test_emphasis_and_chunks_count_the_vectors(model: Model) -> None:
    bad = embedding("bad", 4)
    (chunk,) = split_into_chunks(model, "a (bad:1.5) fox", [bad])["text_encoder"]
    assert sorted(chunk.vectors) == [2, 3, 4, 5]
    assert chunk.weights[:9] == [1, 1, 1.5, 1.5, 1.5, 1.5, 1, 1, 1]
    assert all(torch.equal(chunk.vectors[2 + n], bad.vectors[""][n]) for n in range(4))


@pytest.mark.parametrize(
    ("before", "lengths"),
    [
        ("x" * 26, [30]),  # 30 tokens a chunk: it fits just so
        ("x" * 27, [27, 4]),  # never in two chunks
        ("x" * 30, [30, 4]),
        ("x" * 15 + ", " + "y" * 14, [16, 18]),  # a full one ends after its last comma
        ("x" * 15 + ", " + "y" * 13, [29, 4]),  # one that is not full ends as it is
    ],
)
def test_an_embedding_is_never_cut(model: Model, before: str, lengths: list[int]) -> None:
    bad = embedding("bad", 4)
    chunks = split_into_chunks(model, f"{before} bad", [bad])["text_encoder"]
    eos = model.encoders["text_encoder"].tokenizer.eos_token_id
    assert [chunk.ids.index(eos) - 1 for chunk in chunks] == lengths
    assert [len(chunk.vectors) for chunk in chunks] == [0] * (len(chunks) - 1) + [4]
    last = lengths[-1]
    assert sorted(chunks[-1].vectors) == list(range(last - 3, last + 1))


def test_what_does_not_fit_is_refused_before_any_work(model: Model, sdxl: Model) -> None:
    asked = Request(prompt="a fox", negative_prompt="[fox:bad:1]", steps=3, seed=1)
    wide = embedding("bad", 2, **{"": 48})
    message = r"^bad.safetensors: the vectors .* have 48 numbers, and those .* have 32\. Use a"
    with pytest.raises(ComposerError, match=message):
        generate(model, asked, embeddings=[wide])
    with pytest.raises(ComposerError, match=r"have 32 and 48 numbers, and those .* have 32\."):
        generate(model, asked, embeddings=[embedding("bad", 2, **XL)])
    with pytest.raises(ComposerError, match=r"have 32 numbers, and those .* have 32 and 48\."):
        generate(sdxl, asked, embeddings=[embedding("bad", 2)])
    with pytest.raises(ComposerError, match=r"has 31 vectors, and a chunk of a prompt has 30"):
        generate(model, asked, embeddings=[embedding("bad", 31)])
    with pytest.raises(ComposerError, match=r"asks for the embedding 'gone'"):
        generate(model, replace(asked, prompt="<embedding:gone>"))
    with pytest.raises(ComposerError, match=r"asks for the embedding 'gone'"):
        count_chunks(model, "embedding:gone")
    generate(model, replace(asked, negative_prompt=""), embeddings=[wide])  # it is not named
    # what a file calls the only encoder does not matter
    generate(model, asked, embeddings=[embedding("bad", 2, text_encoder=32)])


def test_a_picture_changes_with_the_step_that_reads_it(model: Model) -> None:
    bad = embedding("bad", 2)

    def latents(prompt: str) -> list[torch.Tensor]:
        asked = Request(prompt=prompt, steps=3, seed=1, sampler="Euler")
        steps = generate(model, asked, embeddings=[bad])
        return [step.latents for step in steps if isinstance(step, Step)]

    without, changing, always = (latents(p) for p in ("a fox", "a fox[ bad:1]", "a fox bad"))
    assert torch.equal(without[1], changing[1]) and not torch.equal(without[2], changing[2])
    assert not torch.equal(changing[0], always[0])
