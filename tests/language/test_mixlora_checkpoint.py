"""MixLoRA's files: ours, the reference's, old ones, and ones that are hostile or do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_ffns import ROUTERS, attached, close, config, make, run, same_bits
from torch import Tensor
from typer.testing import CliRunner

from composer.cli import app
from composer.errors import ComposerError
from composer.language.checkpoint import (
    attach_checkpoints,
    read_adapter,
    read_config,
    save_adapter,
)
from composer.language.convert import convert_adapter
from composer.mixlora import LoraSettings

ATTENTION = LoraSettings(rank=2, alpha=4.0, dropout=0.1)


def saved(folder: Path, family: str = "llama", **settings: Any) -> Path:
    """A trained adapter's folder."""
    model = make(family)
    with attached(model, config(**{"attention": ATTENTION, **settings})) as mixlora:
        save_adapter(mixlora, "a0", folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "phi3", "t5-gated", "clip", "unet"])
def test_saved_and_attached_again_it_says_the_same(family: str, tmp_path: Path) -> None:
    model = make(family)
    with attached(model, config(attention=ATTENTION, dora=True, rank=3)) as mixlora:
        expected = run(family, model)
        save_adapter(mixlora, "a0", tmp_path / "a", metadata={"steps": "3"})
    twin = make(family)
    with attach_checkpoints(twin, {"any": tmp_path / "a"}):
        assert same_bits(run(family, twin), expected)
    assert read_adapter(tmp_path / "a").metadata["steps"] == "3"


@pytest.mark.parametrize("router", ROUTERS)
def test_settings_survive(router: str, tmp_path: Path) -> None:
    told = config(router, rslora=True, attention=ATTENTION, dropout=0.0)
    told = replace(told, base_model="some/base", act_fn="silu")
    told = replace(told, router=replace(told.router, jitter=0.1, balance=0.01))
    model = make("llama")
    with attached(model, told) as mixlora:
        save_adapter(mixlora, "a0", tmp_path)
        found = read_config(tmp_path)
        assert found == replace(
            mixlora.configs["a0"],
            router=replace(told.router, init_std=told.router.std, top_k=found.router.top_k),
        )


def test_names_and_fields_are_the_references(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes["mixlora.layers.1.mlp.moe_gate.weight"] == (4, 16)
    assert shapes["mixlora.layers.0.mlp.down_proj.experts.3.lora_A.weight"] == (3, 24)
    assert shapes["mixlora.layers.0.mlp.gate_proj.experts.0.lora_B.weight"] == (24, 3)
    assert shapes["mixlora.layers.0.self_attn.o_proj.lora_A.weight"] == (2, 16)
    assert len(tensors) == 2 * (1 + 3 * 4 * 2 + 4 * 2)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["peft_type"] == "MIXLORA"
    assert fields["routing_strategy"] == "mixlora"
    assert (fields["num_experts"], fields["top_k"]) == (4, 2)
    assert (fields["r"], fields["lora_alpha"], fields["lora_dropout"]) == (2, 4, 0.1)
    assert (fields["expert_lora"]["r"], fields["expert_lora"]["lora_alpha"]) == (3, 6)
    assert set(fields["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_a_legacy_file_is_read(tmp_path: Path) -> None:
    saved(tmp_path)
    old = {"gate_proj": "w1_proj", "down_proj": "w2_proj", "up_proj": "w3_proj"}
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        if ".mlp.moe_gate." in name:
            name = name.replace(".mlp.moe_gate.", ".gate.")
        elif ".mlp." in name:
            layer, _, rest = name.partition(".mlp.")
            linear, _, expert, end = rest.split(".", 3)
            name = f"{layer}.experts.{expert}.{old[linear]}.{end}"
        tensors[name] = tensor
    modern = read_adapter(tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    change(
        tmp_path,
        lambda fields: fields.update(
            routing_strategy="mixtral",
            target_modules=[old.get(name, name) for name in fields["target_modules"]],
        ),
    )
    legacy = read_adapter(tmp_path)
    assert legacy.config == modern.config
    assert legacy.tensors.keys() == modern.tensors.keys()
    assert all(torch.equal(legacy.tensors[name], t) for name, t in modern.tensors.items())


def test_target_modules_may_be_a_table(tmp_path: Path) -> None:
    saved(tmp_path)
    before = read_config(tmp_path)
    change(
        tmp_path,
        lambda fields: fields.update(
            target_modules={**dict.fromkeys(fields["target_modules"], True), "dense": False}
        ),
    )
    assert read_config(tmp_path) == before


def pickled(folder: Path) -> Path:
    """The same adapter as the reference writes it."""
    saved(folder)
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    return folder


def test_a_pickle_is_never_loaded_but_converted(tmp_path: Path) -> None:
    expected = read_adapter(saved(tmp_path / "one"))
    source = pickled(tmp_path / "two")
    with pytest.raises(ComposerError, match="composer convert"):
        read_adapter(source)
    done = CliRunner().invoke(app, ["convert", str(source), "-o", str(tmp_path / "three")])
    assert done.exit_code == 0, done.output
    found = read_adapter(tmp_path / "three")
    assert found.config == expected.config
    assert all(torch.equal(found.tensors[name], t) for name, t in expected.tensors.items())
    assert CliRunner().invoke(app, ["convert", str(source)]).exit_code == 0
    assert read_adapter(source).tensors.keys() == expected.tensors.keys()


class Bomb:
    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "ran", True))


@pytest.mark.parametrize("content", [{"a": Bomb()}, ["x"], {"a": 3}, {}, {3: torch.ones(1)}])
def test_a_hostile_pickle_does_nothing(content: Any, tmp_path: Path) -> None:
    source = pickled(tmp_path / "a")
    torch.save(content, source / "adapter_model.bin")
    with pytest.raises(ComposerError, match=r"adapter_model\.bin"):
        convert_adapter(source, tmp_path / "b")
    assert not Bomb.ran
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04"])
def test_a_broken_pickle(content: bytes, tmp_path: Path) -> None:
    source = pickled(tmp_path / "a")
    (source / "adapter_model.bin").write_bytes(content)
    done = CliRunner().invoke(app, ["convert", str(source)])
    assert done.exit_code == 2
    assert "adapter_model.bin" in " ".join(done.output.split())


def test_nothing_to_convert(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="convert"):
        convert_adapter(tmp_path, tmp_path)


def change(folder: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    how(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"peft_type": "LORA"}, "MIXLORA"),
        ({"routing_strategy": "magic"}, "magic"),
        ({"num_experts": 10**9}, "1000000000"),
        ({"num_experts": 3}, "3 experts"),
        ({"num_experts": "8"}, "num_experts"),
        ({"top_k": 5}, "top_k"),
        ({"r": 7}, "rank 7"),
        ({"r": None}, "r is"),
        ({"expert_lora": [1]}, "expert_lora"),
        ({"expert_lora": {"r": 9}}, "rank 9"),
        ({"lora_alpha": "big"}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "dropout"),
        ({"target_modules": "q_proj"}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
    ],
)
def test_settings_that_cannot_be_used(fields: dict[str, Any], word: str, tmp_path: Path) -> None:
    saved(tmp_path)
    change(tmp_path, lambda old: old.update(fields))
    with pytest.raises(ComposerError) as error:
        read_adapter(tmp_path)
    assert word in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"peft_type": NaN}'])
def test_settings_that_are_no_settings(text: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ComposerError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)


GATE = "mixlora.layers.0.mlp.moe_gate.weight"
FACTOR = "mixlora.layers.1.mlp.up_proj.experts.2.lora_B.weight"


@pytest.mark.parametrize(
    ("how", "word"),
    [
        (lambda t: t.pop(FACTOR), f"{FACTOR} is missing"),
        (lambda t: t.pop(GATE), f"{GATE} is missing"),
        (lambda t: t.update({GATE: torch.ones(4, 17)}), "(4, 17)"),
        (lambda t: t.update({GATE: torch.ones(4, 0)}), "empty"),
        (lambda t: t.update({FACTOR: torch.ones(23, 3)}), "(23, 3)"),
        (lambda t: t.update({FACTOR: torch.full((24, 3), torch.nan)}), "NaN"),
        (lambda t: t.update({FACTOR: torch.ones(24, 3).to(torch.int8)}), "I8"),
        (lambda t: t.update({"classifier.weight": torch.ones(2, 16)}), "classifier.weight"),
        (lambda t: t.update({FACTOR.replace(".2.", ".4."): torch.ones(24, 3)}), "experts.4"),
        (lambda t: t.update({GATE.replace(".0.", ".7."): torch.ones(4, 16)}), "layers.7"),
    ],
)
def test_files_that_do_not_fit(how: Any, word: str, tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    how(tensors)
    save_file(tensors, path)
    model = make("llama")
    before = run("llama", model)
    with pytest.raises(ComposerError) as error:
        attach_checkpoints(model, {"a": tmp_path})
    assert word in str(error.value)
    assert "adapter_model.safetensors" in str(error.value)
    assert same_bits(run("llama", model), before)
    assert all(p.requires_grad for p in model.parameters())


def test_an_adapter_for_another_base(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ComposerError, match=r"llama.*mistral"):
        attach_checkpoints(make("mistral"), {"a": tmp_path})
    with pytest.raises(ComposerError, match=r"llama.*phi3"):
        attach_checkpoints(make("phi3"), {"a": tmp_path})


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)
    saved(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ComposerError, match=r"adapter_model\.safetensors"):
        read_adapter(tmp_path)


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    mixlora = attached(make("llama"), config())
    next(iter(mixlora.hosts.values())).experts("a0").router.weight.data[0, 0] = torch.inf  # pyright: ignore
    with pytest.raises(ComposerError, match="moe_gate"):
        save_adapter(mixlora, "a0", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_several_adapters_from_their_folders(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", rank=5)
    model = make("llama")
    mixlora = attach_checkpoints(model, {"one": one, "two": two})
    mixlora.assign(["one", "two", None])
    assert close(run("llama", model)[2], run("llama", make("llama"))[2], 1e-6)


def test_the_authors_package_says_the_same() -> None:
    pytest.importorskip("mixlora.model", reason="the authors' package is not installed")
    from benchmarks.mixlora.ways import Shape, reference, sparse

    shape = Shape(
        hidden=64,
        inner=96,
        layers=2,
        words=50,
        experts=4,
        top_k=2,
        rank=3,
        dropout=0.0,
        device="cpu",
    )
    ids = torch.randint(0, 50, (2, 9))
    model: Any = sparse(shape)[0].eval()
    theirs: Any = reference(shape).eval()
    assert close(theirs(input_ids=ids).logits, model(input_ids=ids).logits)
