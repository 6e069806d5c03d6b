"""A VAE of one's own: folders and files, checked against the model, and kept in the record."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_single_file import VAE, renamed

from composer.diffusion.load import load_model
from composer.diffusion.parameters import from_parameters, to_parameters
from composer.diffusion.record import PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.studio.recall import unlike

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def other(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a VAE with other weights than the model's."""
    folder = tmp_path_factory.mktemp("vaes") / "soft"
    shutil.copytree(tiny_sd / "vae", folder)
    tensors = {name: its * 1.25 for name, its in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    return folder


def state(folder: Path, vae: Path | str | None = None) -> dict[str, torch.Tensor]:
    return load_model(folder, vae=vae).vae.state_dict()


@pytest.mark.parametrize("form", ["folder", "model", "original", "prefixed", "diffusers"])
def test_every_form_is_read(form: str, other: Path, tiny_sd: Path, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    if form == "folder":
        path = other
    elif form == "model":
        path = tmp_path / "model"
        shutil.copytree(other, path / "vae")
    elif form == "diffusers":
        shutil.copy(other / WEIGHTS, path)
    else:
        prefix = "first_stage_model." if form == "prefixed" else ""
        save_file(renamed(other / WEIGHTS, VAE, prefix), path)
    expected, own = load_file(other / WEIGHTS), load_file(tiny_sd / "vae" / WEIGHTS)
    found = state(tiny_sd, path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not all(torch.equal(found[name], tensor) for name, tensor in own.items())


def _config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent_channels": 16}, "its number of latent channels is 16, and the model's is 4"),
        ({"scaling_factor": 0.13025}, "its scaling factor is 0.13025, and the model's is 0.18215"),
        ({"shift_factor": 0.1}, "its shift factor is 0.1, and the model's is None"),
        (
            {"block_out_channels": [8, 8, 8]},
            "side of a latent in pixels is 4, and the model's is 2",
        ),
        ({"_class_name": "AutoencoderTiny"}, "is of the kind AutoencoderTiny"),
    ],
)
def test_one_that_does_not_fit_is_refused(
    values: dict[str, Any], message: str, other: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(other, tmp_path / "unfit"))
    _config(folder, **values)
    with pytest.raises(ComposerError, match=rf"The VAE .*unfit .*{message}"):
        load_model(tiny_sd, vae=folder)


def test_files_that_are_none_are_refused(other: Path, tiny_sd: Path, tmp_path: Path) -> None:
    def refused(message: str, name: str, **tensors: torch.Tensor) -> None:
        if tensors:
            save_file(tensors, tmp_path / name)
        with pytest.raises(ComposerError, match=message):
            load_model(tiny_sd, vae=tmp_path / name)

    refused("There is no VAE .*gone", "gone")
    (tmp_path / "vae.pt").write_bytes(b"\x80")
    refused("vae.pt is not a .safetensors file", "vae.pt")
    refused("The VAE .*lora.safetensors lacks", "lora.safetensors", lora=torch.zeros(1))
    wide = {name: torch.cat([its, its]) for name, its in load_file(other / WEIGHTS).items()}
    refused("The VAE .*wide.safetensors does not fit: ", "wide.safetensors", **wide)


def test_the_record_names_it_and_a_picture_of_another_one_is_noted(
    other: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    file = tmp_path / "soft.safetensors"
    shutil.copy(other / WEIGHTS, file)
    own, model = load_model(tiny_sd), load_model(tiny_sd, vae=file)
    assert (own.vae_name, own.vae_hash) == ("", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (model.vae_name, model.vae_hash) == ("soft.safetensors", digest)
    plain = PictureRecord(request=Request(seed=1, width=16, height=16))
    record = PictureRecord(request=plain.request, vae_name=model.vae_name, vae_hash=model.vae_hash)
    assert PictureRecord.from_json(record.to_json()) == record
    assert "vae" not in plain.to_json()  # an older Composer reads it
    text = to_parameters(record)
    assert f"VAE hash: {digest[:10]}, VAE: soft.safetensors" in text
    read = from_parameters(text)
    assert (read.vae_name, read.vae_hash) == (model.vae_name, digest[:10])
    for pictures in (record, read):
        assert unlike(pictures, model) == ()
        assert "with the VAE 'soft.safetensors' (hash" in unlike(pictures, own)[0]
    assert unlike(plain, own) == ()
    assert "its model's own VAE, and 'soft.safetensors' is loaded" in unlike(plain, model)[0]
