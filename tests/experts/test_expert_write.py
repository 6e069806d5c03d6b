"""A written file is read back as it was, says what it is, and is never half there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import ATTENTION, SMALL
from safetensors import safe_open

from composer.errors import ComposerError
from composer.experts import LoraInfo, LowRank, read_expert, read_header, write_lora

CONV = "unet.down_blocks.0.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
INFO = LoraInfo(
    trigger="a red hat",
    role="clothing",
    base="toybox",
    title="Red hat «ü»",
    description="A hat.",
    weight=0.8,
    extra={"composer_steps": "300"},
)


def sites(rank: int = 4) -> dict[str, LowRank]:
    torch.manual_seed(0)
    return {
        ATTENTION: LowRank(down=torch.randn(rank, 32), up=torch.randn(32, rank), scale=0.5),
        CONV: LowRank(down=torch.randn(2, 32, 3, 3), up=torch.randn(32, 2, 1, 1), scale=1.5),
        TEXT: LowRank(down=torch.randn(rank, 32), up=torch.randn(32, rank), scale=2.0),
    }


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_round_trip(tmp_path: Path, naming: Any, dtype: torch.dtype) -> None:
    path = tmp_path / "hat.safetensors"
    write_lora(path, sites(), INFO, naming=naming, dtype=dtype)
    expert = read_expert(path, SMALL)
    assert set(expert.sites) == set(sites())
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    for site, factors in sites().items():
        torch.testing.assert_close(expert.sites[site].dense(), factors.dense(), **tolerance)
    told = expert.info
    assert (told.trigger, told.role, told.base, told.title) == (
        "a red hat", "clothing", "toybox", "Red hat «ü»",
    )  # fmt: skip
    assert (told.description, told.weight, told.rank) == ("A hat.", 0.8, 4)
    assert told.extra["composer_steps"] == "300"
    assert told.extra["sshs_model_hash"] == expert.tensor_hash


def test_other_programs_find_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "hat.safetensors"
    write_lora(path, sites(), INFO)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert len(list(file.keys())) == 9
    assert metadata["modelspec.trigger_phrase"] == "a red hat"
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_network_module"] == "networks.lora"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "hat.safetensors", tmp_path / "b" / "hat.safetensors"
    for path in (one, two):
        path.parent.mkdir()
        write_lora(path, dict(reversed(sites().items())) if path is two else sites(), INFO)
    assert one.read_bytes() == two.read_bytes()


def test_two_text_encoders_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    second = TEXT.replace("text_encoder.", "text_encoder_2.text_model.")
    write_lora(path, {TEXT: sites()[TEXT], second: sites()[TEXT]}, LoraInfo())
    prefixes = {name.split("_text_model")[0] for name in read_header(path).tensors}
    assert prefixes == {"lora_te1", "lora_te2"}


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "hat.safetensors"
    with pytest.raises(ComposerError, match=r"must end in \.safetensors"):
        write_lora(tmp_path / "hat.pt", sites(), INFO)
    with pytest.raises(ComposerError, match="no site"):
        write_lora(path, {}, INFO)
    with pytest.raises(ComposerError, match="folder exists"):
        write_lora(tmp_path / "nowhere" / "hat.safetensors", sites(), INFO)
    huge = LowRank(down=torch.full((2, 32), 1e6), up=torch.ones(32, 2), scale=1.0)
    with pytest.raises(ComposerError, match="too large for F16"):
        write_lora(path, {ATTENTION: huge}, INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "hat.safetensors"
    write_lora(path, sites(), INFO)
    before = path.read_bytes()
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ComposerError, match="cannot be written"):
            write_lora(path, sites(rank=8), INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_an_ordinary_one(tmp_path: Path) -> None:
    path = tmp_path / "hat.safetensors"
    mask = os.umask(0o022)
    try:
        write_lora(path, sites(), INFO)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
