"""Embeddings in the forms that people have, and the words by which prompts call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from composer.cli import app
from composer.errors import ComposerError
from composer.experts import read_header
from composer.experts.card import LORAS
from composer.experts.embedding import (
    EMBEDDINGS,
    asked_in,
    embeddings_within,
    named_in,
    read_embedding,
    read_sizes,
    split,
)
from composer.experts.hashes import file_hash_of
from composer.experts.library import Library

VECTORS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "wanted"),
    [
        ({"emb_params": VECTORS}, {"": VECTORS}),
        ({"string_to_param.*": VECTORS}, {"": VECTORS}),
        ({"<cat-toy>": VECTORS[0]}, {"": VECTORS[:1]}),
        ({"cat toy": VECTORS}, {"": VECTORS}),
        (
            {"clip_g": WIDE, "clip_l": VECTORS},
            {"text_encoder": VECTORS, "text_encoder_2": WIDE},
        ),
        ({"clip_l": VECTORS}, {"text_encoder": VECTORS}),
        ({"emb_params": VECTORS.to(torch.float16)}, {"": VECTORS.to(torch.float16).float()}),
    ],
)
def test_a_file_of_its_own(
    tmp_path: Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor]
) -> None:
    path = written(tmp_path / "bad.safetensors", tensors)
    read = read_embedding(path, "bad")
    assert (read.name, read.path, read.sha256) == ("bad", path, file_hash_of(path))
    assert read.count == len(next(iter(wanted.values())))
    assert read.vectors.keys() == wanted.keys()
    assert all(torch.equal(read.vectors[part], wanted[part]) for part in wanted)
    assert read_sizes(path) == {part: tuple(each.shape) for part, each in wanted.items()}


def test_those_within_a_lora(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_x.lora_down.weight": VECTORS,
        "<s1>": VECTORS[0],
        "bundle_emb.hat.string_to_param.*": VECTORS,
        "bundle_emb.cap.clip_l": VECTORS,
        "bundle_emb.cap.clip_g": WIDE,
    }
    header = read_header(written(tmp_path / "a.safetensors", tensors))
    read = {each.name: each.vectors for each in embeddings_within(header, tensors, "digits")}
    assert {name: {p: v.shape for p, v in each.items()} for name, each in read.items()} == {
        "<s1>": {"": (1, 8)},
        "hat": {"": (3, 8)},
        "cap": {"text_encoder": (3, 8), "text_encoder_2": (3, 12)},
    }
    broken = tensors | {"<s1>": torch.full((8,), torch.nan)}
    with pytest.raises(ComposerError, match=r"NaN or infinite numbers in '<s1>'"):
        embeddings_within(header, broken, "digits")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": torch.full((2, 8), torch.inf)}, r"NaN or infinite numbers in 'emb_params'"),
        ({"emb_params": torch.ones(2, 2, 2)}, r"no vectors in 'emb_params', .* \[2, 2, 2\]"),
        ({"emb_params": torch.ones(0, 8)}, r"no vectors in 'emb_params'"),
        ({"emb_params": torch.ones(2, 8, dtype=torch.int32)}, r"stores 'emb_params' as I32"),
        ({"clip_l": VECTORS, "clip_g": WIDE[:2]}, r"has . and . vectors for the text encoders"),
        ({"<s1>": VECTORS, "<s2>": VECTORS}, r"no embedding in a form that Composer knows"),
        ({"emb_params": VECTORS, "x": VECTORS}, r"LoRAs belong into the LoRA folder itself"),
        ({}, r"its first tensors: none"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    path = written(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(ComposerError, match=message) as error:
        read_embedding(path, "bad")
    assert str(error.value).startswith(f"{path}: ")


def test_the_folder_in_a_lora_folder(tmp_path: Path) -> None:
    path = written(tmp_path / "embeddings" / "Bad-Hands.safetensors", {"emb_params": VECTORS})
    (path.parent / "old.pt").write_bytes(b"PK\x03\x04")
    found = {entry.name: entry for entry in Library([tmp_path], EMBEDDINGS).scan()}
    assert found["Bad-Hands"].info == {"": (3, 8)}
    assert "old.pt: is a pickle by its name" in (found["old"].error or "")
    assert "composer convert" in (found["old"].error or "")
    # the library of LoRAs does not look there, and says of one elsewhere where it belongs
    assert Library([tmp_path], LORAS).scan() == ()
    path.rename(tmp_path / "Bad-Hands.safetensors")
    (entry,) = Library([tmp_path], LORAS).scan()
    assert "Put it into the folder embeddings/ of a LoRA folder" in (entry.error or "")


@pytest.mark.parametrize(
    ("pickled", "wanted"),
    [
        (
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": torch.nn.Parameter(VECTORS)},
                "name": "bad",
                "step": 100,
                "sd_checkpoint": None,
            },
            {"": VECTORS},
        ),
        ({"<cat-toy>": VECTORS[0]}, {"": VECTORS[:1]}),
        (
            {"clip_l": VECTORS, "clip_g": WIDE},
            {"text_encoder": VECTORS, "text_encoder_2": WIDE},
        ),
    ],
)
def test_the_command_makes_safetensors_of_a_pickle(
    tmp_path: Path, pickled: dict[str, Any], wanted: dict[str, Tensor]
) -> None:
    torch.save(pickled, tmp_path / "bad.pt")
    with pytest.raises(ComposerError, match=r"`composer convert` makes one of it"):
        read_sizes(tmp_path / "bad.pt")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "bad.pt")])
    assert done.exit_code == 0, done.output
    read = read_embedding(tmp_path / "bad.safetensors", "bad")
    assert read.vectors.keys() == wanted.keys()
    assert all(torch.equal(read.vectors[part], wanted[part]) for part in wanted)


def test_a_pickle_of_something_else_is_not_converted(tmp_path: Path) -> None:
    for name, pickled in {"a.pt": {"x": VECTORS, "y": VECTORS}, "b.pt": Path("x")}.items():
        torch.save(pickled, tmp_path / name)
        done = CliRunner().invoke(app, ["convert", str(tmp_path / name)])
        assert done.exit_code == 2 and name in done.output
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("text", "names", "wanted"),
    [
        ("a bad fox", ["bad"], [("a ", "bad"), (" fox", "")]),
        ("BAD, Bad-Hands", ["bad", "bad-hands"], [("", "bad"), (", ", "bad-hands"), ("", "")]),
        ("notbad bad2 badly", ["bad"], [("notbad bad2 badly", "")]),
        ("bad_fox (bad)", ["bad"], [("", "bad"), ("_fox (", "bad"), (")", "")]),
        ("embedding:bad,", ["bad"], [("", "bad"), (",", "")]),
        ("Embedding:bad.pt x", ["bad"], [("", "bad"), (" x", "")]),
        ("<embedding:bad> <embed: bad > <bad>", ["bad"], [("", "bad"), (" ", "bad")] * 1
         + [(" ", "bad"), ("", "")]),
        ("a <s1><s2>", ["<s1>", "<s2>"], [("a ", "<s1>"), ("", "<s2>"), ("", "")]),
        ("my   word", ["my word"], [("", "my word"), ("", "")]),
        ("a.b axb", ["a.b"], [("", "a.b"), (" axb", "")]),
        ("a fox", [], [("a fox", "")]),
    ],
)  # fmt: skip
def test_whole_words_in_any_case_and_form(
    text: str, names: list[str], wanted: list[tuple[str, str]]
) -> None:
    assert list(split(text, names)) == wanted


def test_what_prompts_name_and_what_is_missing() -> None:
    texts = ["a fox, embedding:gone, <embed: lost >, embedding:bad", r"hat\(s\) [bad:fox:3]"]
    assert named_in(texts, ["bad", "hat(s)", "owl"]) == ("bad", "hat(s)")
    assert asked_in(texts, ["bad"]) == ("gone", "lost")
