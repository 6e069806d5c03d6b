"""One gate file: what is written comes back, and nothing wrong is taken for right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from composer.errors import ComposerError
from composer.experts import Library
from composer.fusions.gate_file import FORMAT, GatedExpert, GateFile, read_facts, read_gates
from composer.fusions.libraries import GATES
from composer.mixture import GateSettings, LearnedGate, Seen

UNIT = "unet.mid_block.attentions.0"
NAMES = ("ada", "ink", "sea")


def gate(settings: GateSettings, *, tokens: int | None = None) -> LearnedGate:
    torch.manual_seed(0)
    made = LearnedGate(settings, 6, [True, True, False], time_width=5, tokens=tokens)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made


def file_of(made: LearnedGate) -> GateFile:
    return GateFile(
        model="toy",
        model_hash="a" * 64,
        experts=tuple(GatedExpert(name=n, tensor_hash=n * 3, trigger=n) for n in NAMES),
        granularity="block",
        settings={"unet": made.settings},
        tensors={UNIT: dict(made.state_dict())},
        sizes={UNIT: (made.width, made.tokens)},
        training={"steps": 3},
    )


SETTINGS = [
    GateSettings(),
    GateSettings(time=True, bias=True, activation="free"),
    GateSettings(reduce="flatten"),
    GateSettings(input="experts"),
    GateSettings(input="experts", reduce="flatten"),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_file_comes_back_in_any_order_of_experts(
    tmp_path: Path, settings: GateSettings, order: tuple[int, int, int]
) -> None:
    """Rows, and the columns of gates that see the experts' outputs, move with the names."""
    made = gate(settings, tokens=4 if settings.reduce == "flatten" else None)
    path = tmp_path / "gates.safetensors"
    file_of(made).write(path)
    read = read_gates(path)
    assert read.experts == file_of(made).experts
    assert read.training == {"steps": 3} and read.settings == {"unet": settings}
    again = read.gates([NAMES[i] for i in order], {UNIT: None})[UNIT]
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(3, 2, 4, 6, generator=generator)
    seen: dict[str, Any] = {
        "hidden": torch.randn(2, 4, 6, generator=generator),
        "time": torch.randn(2, 5, generator=generator),
        "grid": (2, 2),
    }
    mask = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        wanted = made(Seen(outputs=outputs, **seen), mask)
        got = again(Seen(outputs=outputs[list(order)], **seen), mask)
    torch.testing.assert_close(got, wanted[..., list(order)])
    assert bool((wanted[..., 2] == 0).all())  # the expert that is not in the unit


def test_other_experts_or_another_model_are_refused(tmp_path: Path) -> None:
    file = file_of(gate(GateSettings()))
    with pytest.raises(ComposerError, match=r"gates are for ada, ink, sea.*are ada, ink"):
        file.gates(["ada", "ink"], {UNIT: None})
    with pytest.raises(ComposerError, match="'sea', which is not here"):
        file.check_experts({"ada": "adaadaada", "ink": "inkinkink"})
    with pytest.raises(ComposerError, match="'ink' is another file"):
        file.check_experts({"ada": "adaadaada", "ink": "other", "sea": "seaseasea"})
    file.check_experts({"ada": "adaadaada", "ink": "inkinkink", "sea": "seaseasea", "more": "x"})
    with pytest.raises(ComposerError, match=r"toy \(aaaaaaaaaa\).*other \(bbbbbbbbbb\)"):
        file.check_model("other", "b" * 64)
    with pytest.raises(ComposerError, match=f"govern {UNIT}"):
        file.gates(NAMES, {})


def damage(path: Path, **changes: Any) -> None:
    """Write the file again with other metadata."""
    with safe_open(path, framework="pt") as opened:
        told = json.loads(opened.metadata()[FORMAT])
    for key, value in changes.items():
        if value is None:
            told.pop(key)
        else:
            told[key] = value
    save_file(load_file(path), path, {FORMAT: json.dumps(told)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 9}, "version 9"),
        ({"experts": None}, "lacks 'experts'"),
        ({"experts": [{"nome": "x"}]}, "is damaged"),
        ({"settings": {"unet": {"colour": "red"}}}, "Unknown gate settings colour"),
        ({"settings": {"unet": {"input": "stars"}}}, "input 'stars' is unknown"),
        ({"sizes": 3}, "is damaged"),
        ({"sizes": {UNIT: ["6", None]}}, "is damaged"),
        ({"sizes": {UNIT: [6]}}, "is damaged"),
        ({"sizes": {UNIT: [True, None]}}, "is damaged"),
        ({"sizes": {UNIT: [10**12, None]}}, "is damaged"),
        ({"sizes": {UNIT: [6, 0]}}, "is damaged"),
        ({"experts": []}, "names no experts"),
        ({"experts": [{"name": "a", "tensor_hash": ""}] * 2}, "or one twice"),
        ({"experts": [{"name": 3, "tensor_hash": ""}]}, "is damaged"),
        ({"experts": "abc"}, "is damaged"),
        ({"granularity": ["block"]}, "a granularity that is none"),
        ({"training": 3}, "is damaged"),
        ({"settings": ["unet"]}, "is damaged"),
        ({"settings": {"unet": {"reduce": 4}}}, r"gates\.safetensors.*reduce 4 is unknown"),
        ({"settings": {"unet": {"time": "no"}}}, "time is 'no': give true or false"),
        ({"settings": {"unet": {"top_k": True}}}, "top_k is True, a kind of gate"),
        ({"model": "m\ud800"}, "lone surrogate"),
        ({"version": "\ud800"}, "lone surrogate"),
        ({"training": {"\udfff": [1]}}, "lone surrogate"),
    ],
)
def test_wrong_words_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)
    damage(path, **changes)
    for read in (read_gates, read_facts):
        with pytest.raises(ComposerError, match=message):
            read(path)


@pytest.mark.parametrize("words", ["[" * 100_000, "9" * 5000, '{"version": -' + "9" * 5000 + "}"])
def test_words_without_end(tmp_path: Path, words: str) -> None:
    path = tmp_path / "gates" / "endless.safetensors"
    path.parent.mkdir()
    save_file({"mole.unet.e": torch.zeros(2)}, path, {FORMAT: words})
    with pytest.raises(ComposerError, match="is no JSON"):
        read_facts(path)
    (card,) = Library([tmp_path], GATES).cards()
    assert "is no JSON" in (card.error or "")


def test_a_gate_that_does_not_fit_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)
    damage(path, sizes={UNIT: [7, None]})
    with pytest.raises(ComposerError, match=f"{UNIT} in this file does not fit"):
        read_gates(path).gates(NAMES, {UNIT: None})


BOMBS = [
    (GateSettings(), (2**31, None)),
    (GateSettings(input="experts", reduce="flatten"), (2**31, 2**31)),
    (GateSettings(reduce="flatten"), (2**31, 2**31)),
    (GateSettings(input="placed"), (2**31, None)),
]


@pytest.mark.parametrize(("settings", "size"), BOMBS)
def test_no_room_is_made_for_what_a_file_only_claims(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: GateSettings,
    size: tuple[int, int | None],
) -> None:
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)
    damage(path, settings={"unet": settings.to_json()}, sizes={UNIT: size})
    read = read_gates(path)
    monkeypatch.setattr(torch, "randn", lambda *_: pytest.fail("room was made"))
    with pytest.raises(ComposerError, match=rf"{UNIT} in this file.*e is \(3, 6\) and not"):
        read.gates(NAMES, {UNIT: None})


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("clock", torch.zeros(0, 2**31)),
        ("clock", torch.zeros(3)),
        ("present", torch.ones(4)),
        ("present", torch.ones(3, 1)),
        ("e", torch.zeros(0, 2**31)),
    ],
)
def test_tensors_of_other_shapes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tensor: torch.Tensor,
) -> None:
    settings = GateSettings(input="placed", time=True)
    sound = file_of(LearnedGate(settings, 6, [True] * 3, time_width=5))
    path = tmp_path / "gates.safetensors"
    replace(sound, tensors={UNIT: {**sound.tensors[UNIT], name: tensor}}).write(path)
    read = read_gates(path)
    for maker in ("randn", "zeros"):
        monkeypatch.setattr(torch, maker, lambda *_: pytest.fail("room was made"))
    with pytest.raises(ComposerError, match=rf"{UNIT} in this file does not fit.*its {name} is"):
        read.gates(NAMES, {UNIT: None})


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64, torch.int64]
)
def test_numbers_of_other_kinds(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as opened:
        told = opened.metadata()
    name = f"mole.{UNIT}.e"
    save_file({**tensors, name: tensors[name].to(dtype)}, path, told)
    for read in (read_gates, read_facts):
        with pytest.raises(ComposerError, match=f"{name}' is stored as .*and not as F32"):
            read(path)


def test_the_header_is_that_of_the_bytes_that_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced between its check and its reading."""
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)
    later = save({"mole.unet.e": torch.zeros(2)}, {FORMAT: '{"version": 9}'})
    monkeypatch.setattr(Path, "read_bytes", lambda _: later)
    with pytest.raises(ComposerError, match="version 9"):
        read_gates(path)


def test_a_number_that_is_none_for_others_is_refused_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + length].rstrip().replace(b'"dtype"', b'"more":1e999,"dtype"', 1)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    with pytest.raises(ComposerError, match="1e999 is too large"):
        read_gates(path)


def test_what_the_format_s_own_library_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)

    def refuse(data: bytes) -> None:
        raise SafetensorError("no")

    monkeypatch.setattr("safetensors.torch.load", refuse)
    with pytest.raises(ComposerError, match="library refuses it"):
        read_gates(path)


def test_nan_cut_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "gates.safetensors"
    made = gate(GateSettings())
    with torch.no_grad():
        made.e[0, 0] = float("nan")
    file_of(made).write(path)
    with pytest.raises(ComposerError, match="no part of a gate"):
        read_gates(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ComposerError, match="damaged or cut off"):
        read_gates(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ComposerError, match="holds no gates"):
        read_gates(path)
    with pytest.raises(ComposerError, match="no such file"):
        read_gates(tmp_path / "none.safetensors")
    with pytest.raises(ComposerError, match="must end in"):
        file_of(gate(GateSettings())).write(tmp_path / "gates.bin")


def test_placed_gates_come_back_in_any_order(tmp_path: Path) -> None:
    placed = GateSettings(input="placed", activation="free", bias=True, time=True)
    made = LearnedGate(placed, 6, [True, True, False], time_width=6)
    with torch.no_grad():
        for parameter in (made.e, made.b, made.clock):
            assert parameter is not None
            parameter.normal_()
    path = tmp_path / "placed.safetensors"
    file_of(made).write(path)
    maps, hidden, time = torch.rand(1, 3, 4, 4), torch.randn(1, 16, 6), torch.randn(1, 6)
    mask = torch.ones(3, dtype=torch.bool)
    said = made(Seen(hidden=hidden, grid=(4, 4), regions=maps, time=time), mask)
    turned = read_gates(path).gates(NAMES[::-1], {UNIT: None})[UNIT]
    other = turned(Seen(hidden=hidden, grid=(4, 4), regions=maps.flip(1), time=time), mask)
    torch.testing.assert_close(other.flip(-1), said)


OLD = {"cells": 4, "normalise": "l2", "top_k": 0}
"""What every gate file said before there were fewer kinds of gates."""


def test_a_file_of_before_is_read(tmp_path: Path) -> None:
    """Its gates' settings, and what it tells of its training, hold more than is known today."""
    made = gate(GateSettings(activation="free", time=True, bias=True))
    path = tmp_path / "gates.safetensors"
    file_of(made).write(path)
    training = {"settings": {"objective": "distill", "keep": 0.5, "trajectories": 40}}
    damage(path, settings={"unet": made.settings.to_json() | OLD}, training=training)
    read = read_gates(path)
    assert read.settings == {"unet": made.settings} and read.training == training
    again = read.gates(NAMES, {UNIT: None})[UNIT]
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "kind",
    [{"reduce": "grid"}, {"reduce": "tokens"}, {"activation": "scaled"}, {"activation": "sigmoid"},
     {"input": "regions", "reduce": "tokens"}, {"normalise": "layer"}, {"top_k": 2}],
)  # fmt: skip
def test_a_kind_of_gate_that_was_dropped_is_refused(tmp_path: Path, kind: dict[str, Any]) -> None:
    path = tmp_path / "gates.safetensors"
    file_of(gate(GateSettings())).write(path)
    damage(path, settings={"unet": GateSettings().to_json() | OLD | kind})
    name = next(iter(kind))
    with pytest.raises(ComposerError, match=rf"The gate's {name} is .* dropped .*: train again"):
        read_gates(path)
