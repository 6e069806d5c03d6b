"""The benchmark of full-size models, on tiny ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.models import full_size
from benchmarks.models.full_size import measure
from benchmarks.models.random_model import rule_of_kohya, write_model
from benchmarks.shared.results import read_results
from composer import families
from composer.diffusion.load import CONFIGS, load_model


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sdxl"])
def test_every_part_of_it_runs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    configs: Path = request.getfixturevalue(kind)
    family = load_model(configs).family
    folder = write_model(tmp_path / "model", configs, family, dtype=torch.float16, pixels=32)
    model = load_model(folder)
    assert model.size == 32 and model.family.parts == family.parts
    keys = tmp_path / "other.json"
    keys.write_text(
        json.dumps({"unet.conv_in.lora_A.weight": [4, 4], "unet.conv_in.lora_B.weight": [32, 4]})
    )
    rows = list(measure(folder, name="tiny", dtype="float32", keys=[keys]))
    loading, names, refused, *work = rows
    assert loading["type"] == "float32" and loading["weights (GB)"] is not None
    assert names["unmatched"] == 0 and int(names["modules"] or 0) > 10
    assert names["tensors"] == 3 * int(names["modules"] or 0)
    assert refused["names"] == "other"
    assert [row["what"] for row in work] == [
        "attach 3 LoRAs",
        "a gated step of 32 px",
        "detach",
        "a training step of gates of 32 px",
    ]
    assert [row["exact"] for row in work if "exact" in row] == [True, True]


def test_names_by_kohyas_rule_are_as_many_as_of_kohya() -> None:
    """Of the published sizes, made without memory; sd-scripts' counts are well known."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from composer.diffusion.folder import read_json

    for family, count in ((families.STABLE_DIFFUSION_1, 264), (families.SDXL, 986)):
        parts: dict[str, torch.nn.Module] = {}
        with torch.device("meta"):
            config = read_json(CONFIGS / family.config / "unet" / "config.json")
            parts["unet"] = UNet2DConditionModel.from_config(config)
            for encoder in family.encoders:
                own = CLIPTextConfig.from_pretrained(CONFIGS / family.config / encoder.part)
                parts[encoder.part] = CLIPTextModel(own)

        class Made:
            models = parts

        Made.family = family  # pyright: ignore
        found = rule_of_kohya(Made)  # pyright: ignore
        assert len(found) == 3 * count


def test_it_is_published(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = replace(load_model(tiny_sd).family, config="sd1", name="Tiny")
    monkeypatch.setattr(full_size, "FAMILIES", (family,))
    monkeypatch.setattr(full_size, "CONFIGS", tmp_path)
    (tmp_path / "sd1").symlink_to(tiny_sd)
    monkeypatch.setattr(
        full_size,
        "_measured",
        lambda settings: [
            {"table": "Loading", "model": settings["name"], "type": settings["dtype"]},
        ],
    )
    full_size.main(["--results", str(tmp_path / "results"), "--pixels", "16"])
    (row,) = read_results(tmp_path / "results" / "models_full_size.json").rows
    assert row["model"] == "Tiny"
