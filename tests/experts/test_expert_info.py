"""What is known of a LoRA: from its header, and from what lies beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import KOHYA, kohya_pair, save

from composer.errors import ComposerError
from composer.experts import LoraInfo, LowRank, read_header
from composer.experts.health import health_of, singular_values, without_spikes
from composer.experts.metadata import MAX_TAGS, read_info
from composer.experts.sidecar import with_sidecars


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my.hat.safetensors"


def info(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> LoraInfo:
    return with_sidecars(
        read_info(read_header(save(path, tensors or kohya_pair(), **metadata))), path
    )


def test_a_file_that_says_nothing(path: Path) -> None:
    assert info(path) == LoraInfo(
        title="my.hat", format="kohya", kinds=("LoRA",), rank=2, base="a model with text width 32"
    )


def test_kohya_metadata(path: Path) -> None:
    tags = {"10_hat": {"red hat": 5, "girl": 2, "bad": "x"}, "5_cap": {"girl": 4, " ": 9}, "x": 3}
    told = info(
        path,
        ss_output_name="Red Hat",
        ss_base_model_version="sd_v1",
        ss_network_dim="16",
        ss_tag_frequency=json.dumps(tags),
        ss_steps="300",
    )
    assert (told.title, told.tags) == ("Red Hat", ("girl", "red hat"))
    assert told.rank == 2  # as its shapes say, whatever it claims
    assert told.extra["ss_steps"] == "300"


def test_there_are_not_too_many_tags(path: Path) -> None:
    tags = {"1_x": {f"tag {i}": 1000 - i for i in range(500)}}
    told = info(path, ss_tag_frequency=json.dumps(tags))
    assert told.tags == tuple(f"tag {i}" for i in range(MAX_TAGS))
    assert "ss_tag_frequency" not in told.extra


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"a": [1]}', '{"a":' * 9999, '{"1_hat": {"h\\ud800": 3}}']
)
def test_broken_tags(path: Path, text: str) -> None:
    assert info(path, ss_tag_frequency=text).tags == ()


def test_modelspec_goes_before_kohya_and_ours_before_all(path: Path) -> None:
    spec = {
        "ss_output_name": "a",
        "modelspec.title": "b",
        "modelspec.trigger_phrase": "hat",
        "modelspec.description": "A hat.",
        "modelspec.lora_default_weight": "0.7",
    }
    told = info(path, **spec)
    assert (told.title, told.trigger, told.description, told.weight) == ("b", "hat", "A hat.", 0.7)
    ours = {
        "composer.title": "c",
        "composer.trigger": "red hat",
        "composer.role": "Clothing",
        "composer.base": "toybox",
    }
    told = info(path, **spec, **ours)
    assert (told.title, told.trigger, told.role, told.base) == (
        "c",
        "red hat",
        "clothing",
        "toybox",
    )


def test_an_unknown_role_in_a_file_is_other(path: Path) -> None:
    assert info(path, **{"composer.role": "<script>"}).role == "other"
    with pytest.raises(ComposerError, match="choose one of character, clothing"):
        LoraInfo(role="hat")


@pytest.mark.parametrize(
    ("name", "width", "base"),
    [
        (KOHYA, 768, "Stable Diffusion 1.x"),
        (KOHYA, 1024, "Stable Diffusion 2.x"),
        (KOHYA, 2048, "SDXL"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, "SDXL"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, "Stable Diffusion 1.x"),
        ("lora_unet_down_blocks_0_resnets_0_conv1", 320, "flux1"),
    ],
)
def test_the_base_is_told_by_shapes_before_claims(
    path: Path, name: str, width: int, base: str
) -> None:
    tensors = {key.replace(KOHYA, name): value for key, value in kohya_pair(ins=width).items()}
    assert info(path, tensors, ss_base_model_version="flux1").base == base


class TestSidecars:
    def test_what_the_user_wrote_goes_first(self, path: Path) -> None:
        user = {
            "activation text": "blue hat",
            "role": "Clothing",
            "preferred weight": 0.6,
            "negative text": "cap",
            "notes": "mine",
            "description": "Blue.",
            "sd version": "SD1",
        }
        path.with_suffix(".json").write_text(json.dumps(user))
        told = info(path, **{"composer.trigger": "red hat"})
        assert (told.trigger, told.weight, told.negative) == ("blue hat", 0.6, "cap")
        assert (told.notes, told.description, told.role) == ("mine", "Blue.", "clothing")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"\xed\xa0\xbd",
            b'{"activation text": 3, "preferred weight": "x"}',
            b'{"preferred weight": 0}',
            b'{"preferred weight": NaN}',
            b'{"notes": null, "role": "hat"}',
        ],
    )
    def test_broken_ones_change_nothing(self, path: Path, content: bytes) -> None:
        path.with_suffix(".json").write_bytes(content)
        told = info(path, **{"composer.trigger": "red hat", "composer.weight": "0.8"})
        assert (told.trigger, told.weight, told.notes) == ("red hat", 0.8, "")

    @pytest.mark.parametrize("suffix", [".preview.png", ".png", ".jpg", ".jpeg", ".webp"])
    def test_previews(self, path: Path, suffix: str) -> None:
        picture = path.with_name("my.hat" + suffix)
        picture.touch()
        assert info(path).preview == picture

    def test_links_elsewhere_are_not_followed(self, path: Path, tmp_path: Path) -> None:
        folder = tmp_path / "loras"
        folder.mkdir()
        (tmp_path / "secret").write_text('{"notes": "secret"}')
        for suffix in (".json", ".png"):
            (folder / f"hat{suffix}").symlink_to(tmp_path / "secret")
        told = info(folder / "hat.safetensors")
        assert (told.notes, told.preview) == ("", None)


@pytest.mark.parametrize("rank", [2, 30])  # thin factors, and thick ones
def test_singular_values_of_factors(rank: int) -> None:
    torch.manual_seed(0)
    factors = LowRank(down=torch.randn(rank, 3, 3, 3), up=torch.randn(20, rank, 1, 1), scale=-0.5)
    expected = torch.linalg.svdvals(factors.dense().flatten(1).double())
    found = singular_values(factors)
    torch.testing.assert_close(found, expected[: len(found)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [3, 40])
def test_a_spike_is_lowered_to_the_second_value(rank: int) -> None:
    torch.manual_seed(0)
    plain = LowRank(down=torch.randn(rank, 3, 3, 3), up=torch.randn(20, rank, 1, 1), scale=-0.5)
    down = plain.down.clone()
    down[0] *= 90
    offset = torch.zeros(rank)
    offset[1] = 1
    spiked = LowRank(down=down, up=plain.up, scale=-0.5, offset=offset)
    before = singular_values(spiked)
    capped = without_spikes({"one": plain, "two": spiked})
    assert capped["one"] is plain
    factors = capped["two"]
    after = singular_values(factors)
    expected = torch.cat((before[1:2], before[1:]))
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5 * float(before[0]))
    energy = float(spiked.dense().square().sum())
    assert float(factors.dense().square().sum()) == pytest.approx(
        energy - float(before[0] ** 2 - before[1] ** 2), abs=1e-5 * energy
    )
    # The other directions are as they were, and so are rank, scale and bias.
    change = spiked.dense() - factors.dense()
    assert int((torch.linalg.svdvals(change.flatten(1)) > 1e-4 * before[0]).sum()) == 1
    assert (factors.rank, factors.scale) == (rank, -0.5)
    assert torch.equal(factors.bias(), spiked.bias())  # pyright: ignore[reportArgumentType]


def test_a_spike_is_named() -> None:
    """One direction far above the others, as in LoRAs that spoil every mixture."""
    torch.manual_seed(0)
    plain = LowRank(down=torch.randn(4, 16), up=torch.randn(16, 4), scale=0.1)
    down = plain.down.clone()
    down[0] *= 50
    spiked = LowRank(down=down, up=plain.up, scale=0.1)
    one = "unet.mid_block.attentions.0.proj_in"
    two = "unet.down_blocks.1.resnets.0.conv1"
    health = health_of({one: plain, two: spiked})
    assert (health.spikes, health.largest[1]) == ((two,), two)
    assert next(iter(health.energy)) == "unet.down_blocks.1"
    norms = sum(float(f.dense().square().sum()) for f in (plain, spiked))
    assert health.norm == pytest.approx(norms**0.5, rel=1e-5)
