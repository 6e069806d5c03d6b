"""Models load from folders and files, and everything else is refused with a remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from composer.diffusion.load import choose_device, load_model
from composer.errors import ComposerError


@pytest.fixture
def copy(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "copy"))


def test_sizes_come_from_the_configs(tiny_sd: Path, tiny_zero_snr_sd: Path) -> None:
    model = load_model(tiny_sd)
    assert (model.size, model.multiple, model.latent_channels) == (16, 2, 4)
    assert (model.token_limit, model.cross_attention_dim) == (32, 32)
    assert (model.prediction_type, model.scaling_factor) == ("epsilon", 0.18215)
    assert set(model.models) == {"unet", "text_encoder"}
    assert model.unet.dtype == model.vae.dtype == torch.float32
    assert model.name == tiny_sd.name
    assert load_model(tiny_zero_snr_sd).prediction_type == "v_prediction"


@pytest.mark.parametrize(
    "name", ["StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline"]
)
def test_which_pipeline_saved_the_folder_does_not_matter(copy: Path, name: str) -> None:
    path = copy / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))
    assert set(load_model(copy).models) == {"unet", "text_encoder"}


def test_sdxl_has_two_text_encoders(tiny_sdxl: Path) -> None:
    model = load_model(tiny_sdxl)
    assert set(model.models) == {"unet", "text_encoder", "text_encoder_2"}
    assert (model.size, model.cross_attention_dim, model.zero_negative) == (16, 80, True)
    assert model.family.name == "a model with text width 80"


def test_half_precision_keeps_the_vae_in_float32_and_trains_nothing(tiny_sd: Path) -> None:
    model = load_model(str(tiny_sd), dtype=torch.float16)
    assert model.unet.dtype == model.models["text_encoder"].dtype == torch.float16
    assert model.vae.dtype == torch.float32
    assert not any(p.requires_grad for part in model.models.values() for p in part.parameters())


def test_the_hash_is_that_of_the_weights(copy: Path) -> None:
    import hashlib

    unet = copy / "unet" / "diffusion_pytorch_model.safetensors"
    assert load_model(copy).hash == hashlib.sha256(unet.read_bytes()).hexdigest()


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_variant_is_loaded_where_it_is_what_is_there(copy: Path, variant: str) -> None:
    for path in copy.glob("*/*.safetensors"):
        if path.parent.name != "vae":  # each part by itself
            path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    model = load_model(copy)
    assert model.size == 16
    assert model.weights[0].name == f"diffusion_pytorch_model.{variant}.safetensors"


def test_plain_weights_go_first_then_half_ones_and_those_for_training_last(copy: Path) -> None:
    plain = copy / "unet" / "diffusion_pytorch_model.safetensors"
    others = [plain.with_suffix(f".{name}.safetensors") for name in ("fp16", "non_ema")]
    for other in others:
        shutil.copy(plain, other)
    for path in (plain, *others):
        assert load_model(copy).weights == (path,)
        path.unlink()


def test_shards_of_a_variant(copy: Path) -> None:
    unet = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = sorted(load_file(unet).items())
    names = [f"diffusion_pytorch_model.fp16-{n:05}-of-00002.safetensors" for n in (1, 2)]
    for name, half in zip(names, (tensors[:20], tensors[20:]), strict=True):
        save_file(dict(half), unet.with_name(name))
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    unet.with_name("diffusion_pytorch_model.safetensors.index.fp16.json").write_text(
        json.dumps(index)
    )
    unet.unlink()
    assert load_model(copy).weights == tuple(unet.with_name(name) for name in names)
    unet.with_name(names[1]).unlink()
    with pytest.raises(ComposerError, match=r"unet lacks .*00002-of-00002.safetensors"):
        load_model(copy)


def _only_pickles(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def _cut_off(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _with_parts(folder: Path, name: str, *parts: str) -> None:
    """Another `model_index.json`: these parts and the VAE."""
    index = {part: ["some", "Class"] for part in (*parts, "vae", "scheduler")}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name} | index))


def _mixed_parts(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    save_file({**tensors, name: tensors[name][:, :7].contiguous()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "vae"), "not complete: vae/config.json missing"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer/tokenizer_config.json, tok"),
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing. Give the f"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
        (lambda f: (f / "unet/config.json").write_text("[]"), "cannot be loaded|not a JSON"),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
            "unet has no weights: diffusion_pytorch_model.safetensors is missing",
        ),
        (_only_pickles, "only as diffusion_pytorch_model.bin. Only .safetensors .*save_pretrained"),
        (_cut_off, "vae/diffusion_pytorch_model.safetensors is not a whole safetensors file"),
        (
            lambda f: _with_parts(f, "FluxPipeline", "transformer", "text_encoder"),
            "is a FluxPipeline of .*transformer.*; .* Choose another model",
        ),
        (
            lambda f: _with_parts(f, "StableDiffusionXLImg2ImgPipeline", "unet", "text_encoder_2"),
            "is a StableDiffusionXLImg2ImgPipeline of .*; .* Choose another model",
        ),
        (
            lambda f: _with_parts(f, "X", "unet", "text_encoder", "text_encoder_2"),
            "not complete: text_encoder_2/config.json, tokenizer_2/tokenizer_config.json",
        ),
        (_mixed_parts, r"text_encoder of .* does not fit: .*fc1.weight is \(64, 7\)"),
    ],
)
def test_spoilt_folders(copy: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(copy)
    with pytest.raises(ComposerError, match=message):
        load_model(copy)


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./toybox", "../toybox", "toybox", "a/b/c", "assets\\toybox", "~/no"],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")  # in which none of them is
    with pytest.raises(ComposerError, match=r"There is no model folder .* Give a diffusers folder"):
        load_model(name)


def test_a_missing_folder_below_one_that_exists_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "assets").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ComposerError, match=r"There is no model folder assets/toybox"):
        load_model("assets/toybox")


def test_an_unreachable_hub_name_says_so() -> None:
    with pytest.raises(ComposerError, match=r"someone/some-model cannot be loaded.*connection"):
        load_model("someone/some-model")


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ComposerError, match=r"no device 'gpu'. Use auto"):
        choose_device("gpu")
    with pytest.raises(ComposerError, match=r"no meta device"):
        choose_device("meta")


def test_checkpoint_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"There is no file .*m.safetensors"):
        load_model(tmp_path / "m.safetensors")
    (tmp_path / "m.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(ComposerError, match=r"m.ckpt is not a .safetensors file. Only"):
        load_model(tmp_path / "m.ckpt")
    (tmp_path / "m.safetensors").write_bytes(b"<html>")
    with pytest.raises(ComposerError, match=r"m.safetensors is not a whole safetensors"):
        load_model(tmp_path / "m.safetensors")
    save_file({"lora_unet.down": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ComposerError, match=r"lora.safetensors is not a Stable Diffusion"):
        load_model(tmp_path / "lora.safetensors")
    names = ("model.diffusion_model.input_blocks.0", "first_stage_model.0")
    refiner = {n: torch.zeros(1) for n in (*names, "conditioner.embedders.0.model.x")}
    save_file(refiner, tmp_path / "refiner.safetensors")
    with pytest.raises(ComposerError, match=r"refiner.safetensors .* no text encoder of a text"):
        load_model(tmp_path / "refiner.safetensors")
