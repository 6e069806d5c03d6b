"""What the gates said while a picture was made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.evaluation.heat_map import heat_map
from composer.fusions.gate_record import GateRecord, GateRecorder
from composer.mixture import GateSettings, LearnedGate, Mixture, attach

STEPS = 3


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture
def mixture(model: Model, tmp_path: Path) -> Iterator[Mixture]:
    with attach(model.models, {e.name: e.sites for e in experts_for(model, tmp_path)}) as made:
        torch.manual_seed(0)
        gate = LearnedGate(GateSettings(time=True), 32, [True, True], time_width=128)
        assert gate.clock is not None
        with torch.no_grad():
            gate.clock.normal_()
            gate.e.normal_()
        made.set_gates({"unet": gate})
        yield made


def sampled(model: Model, pictures: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for step in range(STEPS):
            latents = torch.randn(2 * pictures, model.latent_channels, 8, 8, generator=generator)
            text = torch.randn(2 * pictures, 5, model.cross_attention_dim, generator=generator)
            model.unet(latents, 900 - 300 * step, text)
            yield step


def test_every_step_of_each_picture_both_rows_apart(model: Model, mixture: Mixture) -> None:
    recorder = GateRecorder(mixture, guided=True)
    assert list(recorder.follow(sampled(model, 2))) == [0, 1, 2]
    records = recorder.records()
    assert len(records) == 2
    for record in records:
        assert record.experts == ("ada", "ink") and record.units == ("unet",)
        assert record.without is not None
        assert record.with_prompt.shape == record.without.shape == (STEPS, 1, 2)
        np.testing.assert_allclose(record.shares().sum(-1), 1, atol=1e-6)
        assert not np.allclose(record.with_prompt, record.without)
        assert not np.allclose(record.with_prompt[0], record.with_prompt[1])
    assert not np.allclose(records[0].with_prompt, records[1].with_prompt)


def test_constant_weights_leave_no_record(model: Model, mixture: Mixture) -> None:
    mixture.set_weights({"ada": 1.0, "ink": 1.0})
    recorder = GateRecorder(mixture, guided=True)
    list(recorder.follow(sampled(model, 1)))
    assert recorder.records() == []


def record_of(shares: list[list[float]]) -> GateRecord:
    """One step, one expert more than asked for in no unit."""
    weights = np.array([shares], dtype=np.float32)
    units = ("unet.down_blocks.0.attentions.0", "unet.mid_block.attentions.0")
    return GateRecord(experts=("ada", "ink"), units=units, with_prompt=weights, without=None)


def test_entropy() -> None:
    record = record_of([[2.0, 2.0], [-3.0, 0.0]])
    np.testing.assert_allclose(record.entropy(), [1.0, 0.0], atol=1e-5)
    with pytest.raises(ValueError, match="without guidance"):
        record.entropy("without")


def test_the_heat_map_is_darker_where_an_expert_speaks_more() -> None:
    image = np.asarray(heat_map(record_of([[0.9, 0.1], [0.2, 0.8]])).convert("L"), dtype=float)
    swapped = np.asarray(heat_map(record_of([[0.1, 0.9], [0.8, 0.2]])).convert("L"), dtype=float)
    assert image.shape == swapped.shape
    changed = np.argwhere(np.abs(image - swapped) > 20)
    assert len(changed) > 100
    top = changed[:, 0].min() + 3  # inside the first row of cells
    row = image[top] - swapped[top]
    columns = np.flatnonzero(np.abs(row) > 20)
    assert row[columns[0]] < 0 < row[columns[-1]]


def test_a_record_comes_back_from_its_bytes() -> None:
    record = record_of([[0.9, 0.1], [0.2, 0.8]])
    for without in (None, record.with_prompt / 2):
        whole = GateRecord(
            experts=record.experts,
            units=record.units,
            with_prompt=record.with_prompt,
            without=without,
        )
        read = GateRecord.from_bytes(whole.to_bytes())
        assert (read.experts, read.units) == (whole.experts, whole.units)
        np.testing.assert_array_equal(read.with_prompt, whole.with_prompt)
        assert (read.without is None) == (without is None)


def saved(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


NAMES = {"experts": np.array(["a", "b"]), "units": np.array(["u"])}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no map",
        record_of([[0.9, 0.1], [0.2, 0.8]]).to_bytes()[:-30],
        saved(**NAMES),
        saved(**NAMES, with_prompt=np.zeros((2, 3, 2))),
        saved(**NAMES, with_prompt=np.zeros(())),
        saved(**NAMES, with_prompt=np.full((2, 1, 2), np.nan)),
        saved(**NAMES, with_prompt=np.array([{"an": "object"}])),
        saved(experts=np.array([print]), units=NAMES["units"], with_prompt=np.zeros((2, 1, 1))),
    ],
)
def test_a_damaged_record_is_refused(data: bytes) -> None:
    with pytest.raises(ComposerError, match="gate map is damaged"):
        GateRecord.from_bytes(data)
