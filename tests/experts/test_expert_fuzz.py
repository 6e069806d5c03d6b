"""Whatever is done to a file, it is read or refused with a message; nothing else happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from lora_files import SMALL, kohya_pair, raw_file, save

from composer.errors import ComposerError
from composer.experts import LORAS, Library, read_expert
from composer.experts.formats import parse_key

quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "lora.safetensors"
    return save(path, kohya_pair(), ss_tag_frequency='{"1_hat": {"hat": 3}}', format="pt")


def read_or_refuse(path: Path) -> None:
    try:
        expert = read_expert(path, SMALL)
    except ComposerError as error:
        assert path.name in str(error)
    else:
        assert all(torch.isfinite(factors.dense()).all() for factors in expert.sites.values())
    Library([path.parent], LORAS).scan()


@quick
@given(data=st.data())
def test_flipped_bytes(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for position in data.draw(st.lists(st.integers(0, header + 16), min_size=1, max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    read_or_refuse(path)


@quick
@given(data=st.data())
def test_cut_and_grown(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = sound.read_bytes()
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    path = tmp_path / "cut.safetensors"
    path.write_bytes(cut + data.draw(st.binary(max_size=40)))
    read_or_refuse(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@quick
@given(
    header=st.dictionaries(st.text(max_size=30) | st.sampled_from(list(kohya_pair())), json_values)
)
def test_any_json_as_header(tmp_path: Path, header: object) -> None:
    read_or_refuse(raw_file(tmp_path / "any.safetensors", header, bytes(8)))


pieces = [
    "unet",
    "lora_unet",
    "lora_A",
    "lora_down",
    "weight",
    "alpha",
    "default",
    "0",
    "",
    "_",
    "\n",
]
keys_like_real_ones = st.lists(st.sampled_from(pieces), max_size=9).map(".".join)


@quick
@given(key=st.text(max_size=60) | keys_like_real_ones, metadata=st.text(max_size=30))
def test_any_name_and_metadata(tmp_path: Path, key: str, metadata: str) -> None:
    parse_key(key)
    header = {
        "__metadata__": dict.fromkeys(
            ("ss_tag_frequency", "composer.role", "modelspec.lora_default_weight",
             "lora_adapter_metadata", "composer.trigger"),
            metadata,
        ),
        key: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }  # fmt: skip
    read_or_refuse(raw_file(tmp_path / "named.safetensors", header, bytes(8)))
