"""Each kind of adapter adds exactly what the library that writes it adds, and bad ones are refused.

LyCORIS and PEFT are the oracles, with random weights of every factoring they have.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from lora_files import save
from safetensors.torch import load_file
from torch import nn

from benchmarks.experts.adapters import (
    KINDS,
    NAMINGS,
    Modules,
    Net,
    errors,
    from_lycoris,
    from_peft,
)
from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert, write_lora
from composer.experts.info import LoraInfo
from composer.mixture import attach

ONE = "lora_unet_wide."


@pytest.fixture
def net() -> Net:
    return Net.made()


@pytest.fixture
def names(net: Net) -> ModuleNames:
    return ModuleNames.of({"unet": net}, model="net")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter.safetensors"


def assert_same(
    expert: Expert, net: Net, adapted: Modules, dtype: torch.dtype = torch.float64
) -> None:
    """What the mixture adds to each module's output is what the adapted module adds."""
    assert set(expert.sites) == {f"unet.{site}" for site in adapted}
    assert (expert.unmatched, expert.share) == ((), 1.0)
    found = errors(expert, net, adapted, dtype)
    assert max(found.values()) < (1e-5 if dtype == torch.float64 else 1e-4), found


CASES = KINDS | NAMINGS
Written = Callable[[str], tuple[Net, Path, Modules]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """For a case its net, file and adapted modules, made once for all tests here."""

    @cache
    def write(name: str) -> tuple[Net, Path, Modules]:
        net = Net.made()
        return net, *CASES[name].write(net, tmp_path_factory.mktemp("written"))

    return write


@pytest.mark.parametrize("name", CASES)
def test_what_a_file_adds(name: str, written: Written, names: ModuleNames) -> None:
    net, path, adapted = written(name)
    assert_same(read_expert(path, names), net, adapted, CASES[name].dtype)


def damage(content: bytes, random: Random) -> tuple[bytes, bool]:
    """A file damaged at random, and whether it may be a sound file of other numbers then: there is
    no checksum in a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), bytearray(content[start:])
    name = random.choice([name for name in header if name != "__metadata__"])
    entry, numbers = header[name], False
    match random.randrange(8):
        case 0 | 1:
            flipped = bytearray(content)
            for _ in range(random.randint(1, 3)):
                flipped[random.randrange(start)] = random.randrange(256)
            return bytes(flipped), False
        case 2:
            return content[: random.randrange(len(content))], False
        case 3:
            return content + random.randbytes(random.randint(1, 40)), False
        case 4:
            entry["dtype"] = random.choice(["F16", "BF16", "F64", "I8", "BOOL", "F33", None, 3])
        case 5:
            entry["shape"] = random.choice(
                [[*entry["shape"], 1], entry["shape"][1:], [-1], [2**70]]
            )
            numbers = True  # a side of 1 may come or go
        case 6:
            other = name[: random.randrange(len(name))] + random.choice(["", "x", ".alpha", "\0"])
            header = {other if key == name else key: value for key, value in header.items()}
        case _:
            at = random.randrange(len(data) or 1)
            data[at : at + 4] = random.randbytes(4)
            numbers = True
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data, numbers


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_read_as_it_was_or_refused(
    name: str, written: Written, names: ModuleNames
) -> None:
    """Or what is no longer known of it is named: over 500 files, some of each kind and naming."""
    _, path, _ = written(name)
    sound, content, random = read_expert(path, names), path.read_bytes(), Random(name)
    damaged = path.with_name("damaged.safetensors")
    for _ in range(-(-500 // len(CASES))):
        spoiled, numbers = damage(content, random)
        damaged.write_bytes(spoiled)
        try:
            expert = read_expert(damaged, names)
        except ComposerError as error:
            assert damaged.name in str(error)
            continue
        assert all(torch.isfinite(factors.dense()).all() for factors in expert.sites.values())
        assert numbers or expert.unmatched or same(expert, sound), spoiled[:2000]


def same(one: Expert, other: Expert) -> bool:
    return one.sites.keys() == other.sites.keys() and all(
        torch.equal(factors.dense(), other.sites[site].dense())
        for site, factors in one.sites.items()
    )


def test_a_tlora_that_began_at_random(names: ModuleNames, path: Path) -> None:
    shapes = {"p_layer.weight": (16, 3), "q_layer.weight": (3, 24), "lambda_layer": (1, 3)}
    save(path, {ONE + slot: torch.randn(shape) for slot, shape in shapes.items()})
    with pytest.raises(ComposerError, match="did not begin as a part of this model's weight"):
        read_expert(path, names)


def test_the_norms_that_lycoris_trains(net: Net, names: ModuleNames, tmp_path: Path) -> None:
    """They are named and left out, and what stands beside them is exact."""
    path, adapters = from_lycoris("LoConModule", net, tmp_path, lora_dim=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lycoris.modules import NormModule

    norm = NormModule("lora_unet_norm1", nn.LayerNorm(16))
    tensors = {f"lora_unet_norm1.{slot}": tensor for slot, tensor in norm.state_dict().items()}
    save(path, load_file(path) | tensors)
    with pytest.raises(ComposerError, match=r"changes norms.*lora_unet_norm1"):
        read_expert(path, names)
    expert = read_expert(path, names, partial=True)
    assert (set(expert.unmatched), expert.share) == (set(tensors), 0.8)
    assert expert.info.kinds == ("LoRA", "norms")
    assert_same(replace(expert, unmatched=(), modules=4), net, adapters)


def test_a_begun_adapter_that_cannot_be_undone(
    net: Net, names: ModuleNames, tmp_path: Path
) -> None:
    file, _ = from_peft(
        "Lora", net, tmp_path, sites=["wide"], r=2, init_lora_weights="pissa_niter_4"
    )
    with pytest.raises(ComposerError, match=r"adapter_config.*'pissa_niter_4'.*plain LoRA"):
        read_expert(file, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_version": "0.17.1"}, r"adapter_config.*PEFT before 0.18.*Merge it"),
        ({"peft_version": None}, "PEFT before 0.18"),
        ({"num_cayley_neumann_terms": 0}, "terms is 0; 1 to 100"),
        ({"num_cayley_neumann_terms": "many"}, "num_cayley_neumann_terms 'many' is no number"),
        ({"coft": True, "eps": None}, "eps 'None' is no number"),
    ],
)
def test_an_oft_of_which_the_config_says_too_little(
    change: dict[str, Any], message: str, net: Net, names: ModuleNames, tmp_path: Path
) -> None:
    file, _ = from_peft("OFT", net, tmp_path, sites=["wide"], oft_block_size=4)
    config = file.with_name("adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ComposerError, match=message):
        read_expert(file, names)


def test_an_oft_that_peft_trains_otherwise_than_it_merges(
    net: Net, names: ModuleNames, tmp_path: Path
) -> None:
    file, _ = from_peft("OFT", net, tmp_path, sites=["conv"], oft_block_size=4)
    with pytest.raises(ComposerError, match=r"convolution wider than 1×1.*conv"):
        read_expert(file, names)


def test_the_places_that_an_old_boft_repeats(net: Net, names: ModuleNames, tmp_path: Path) -> None:
    """PEFT wrote its permutations too, once; others than these mean another adapter."""
    file, _ = from_peft("BOFT", net, tmp_path, sites=["wide"], boft_block_size=4)
    tensors = load_file(file)
    places = torch.eye(24)[None]
    key = "base_model.model.wide.boft_P"
    assert read_expert(save(file, {**tensors, key: places}), names).unmatched == ()
    with pytest.raises(ComposerError, match="another order of inputs"):
        read_expert(save(file, {**tensors, key: places.flip(1)}), names)


def test_what_depends_on_the_weights_needs_them(
    net: Net, names: ModuleNames, tmp_path: Path
) -> None:
    path, _ = from_lycoris("DiagOFTModule", net, tmp_path, lora_dim=4)
    shapes = ModuleNames(model="far", shapes=names.shapes)
    with pytest.raises(ComposerError, match=r"unet.conv of 'far' is quantised or not in memory"):
        read_expert(path, shapes)


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_a_changed_bias_is_written_again(
    naming: Any, net: Net, names: ModuleNames, tmp_path: Path
) -> None:
    path, full = from_lycoris("FullModule", net, tmp_path)
    expert = read_expert(path, names)
    assert expert.info.kinds == ("full difference", "biases")
    again = path.with_name("again.safetensors")
    write_lora(again, expert.sites, LoraInfo(), naming=naming, dtype=torch.float32)
    assert_same(read_expert(again, names), net, full)


def test_reading_leaves_the_model_as_it_is(net: Net, names: ModuleNames, tmp_path: Path) -> None:
    """Also while other experts are attached: what a file adds is of the model's own weights."""
    path, _ = from_lycoris("LoConModule", net, tmp_path, lora_dim=3, weight_decompose=True)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    bare = read_expert(path, names).sites["unet.wide"]
    mixture = attach({"unet": net}, {"one": {"unet.wide": bare}})
    again = read_expert(path, names).sites["unet.wide"]
    mixture.detach()
    assert torch.equal(bare.down, again.down) and torch.equal(bare.up, again.up)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"hada_w1_a": (16, 2), "hada_w1_b": (2, 24), "hada_w2_a": (16, 2)}, "no hada_w2_b tensor"),
        (
            {"hada_w1_a": (16, 2), "hada_w1_b": (3, 24)}
            | {"hada_w2_a": (16, 2), "hada_w2_b": (2, 24)},
            "factors that do not fit each other",
        ),
        ({"lokr_w1": (4, 4)}, "no lokr_w2_a tensor"),
        ({"lokr_w1": (4, 4), "lokr_w2": (4, 5)}, r"unet.wide is 16×20 in the LoRA"),
        ({"lora_down.weight": (2, 24), "lora_up.weight": (16, 2), "dora_scale": (5, 1)}, "5 magni"),
        ({"diff": (16, 23)}, r"unet.wide is 16×23 in the LoRA and 16×24"),
        ({"diff": (16, 24), "diff_b": (15,)}, r"unet.wide is 15×24"),
        ({"weight": (16,)}, "no on_input tensor"),
        ({"on_input": (), "weight": (5,)}, r"unet.wide is 16×5|unet.wide is 5×24"),
        ({"oft_blocks": (4, 4, 5)}, "blocks of no known shape"),
        ({"oft_blocks": (3, 4, 4)}, r"unet.wide is 12×24"),
        ({"oft_blocks": (9, 2, 8, 8)}, "no butterfly of BOFT"),
        ({"oft_R.weight": (6, 6)}, "no adapter_config.json says how it turns"),
        ({"boft_R": (1, 6, 4, 4)}, "no boft_s tensor"),
        ({"boft_R": (1, 6, 4, 3), "boft_s": (16, 1)}, "blocks of no known shape"),
        ({"boft_R": (1, 5, 4, 4), "boft_s": (16, 1)}, r"unet.wide is 16×20"),
        ({"boft_R": (5, 6, 4, 4), "boft_s": (16, 1)}, "6 blocks that no butterfly"),
        ({"a1.weight": (24, 2), "a2.weight": (2, 24), "b1.weight": (16, 2)}, "no b2 tensor"),
        ({"lora_mid.weight": (2, 3, 3, 3), "lora_down.weight": (2, 24), "lora_up.weight": (16, 2)},
         "middle factor"),
        ({"lora_down.weight": (2, 24), "lora_up.weight": (16, 2), "diff": (16, 24)},
         "LoRA and full difference at once"),
    ],
)  # fmt: skip
def test_bad_adapters(
    slots: dict[str, tuple[int, ...]], message: str, names: ModuleNames, path: Path
) -> None:
    save(path, {ONE + slot: torch.ones(shape) for slot, shape in slots.items()})
    with pytest.raises(ComposerError, match=message) as error:
        read_expert(path, names)
    assert str(path) in str(error.value)


def test_a_huge_product_of_small_tensors_is_not_made(names: ModuleNames, path: Path) -> None:
    """LoKr's tensors multiply: shapes are compared before any product."""
    save(path, {ONE + "lokr_w1": torch.ones(3000, 3000), ONE + "lokr_w2": torch.ones(3000, 3000)})
    with pytest.raises(ComposerError, match="9000000×9000000"):
        read_expert(path, names)
