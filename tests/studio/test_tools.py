"""LoRAs for few steps: known by their names, added below whatever fuses the others, and said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from studio_pictures import finished, paint, ready
from tiny_gates import write_gates
from tiny_loras import write_lora
from typer.testing import CliRunner

from composer.cli import app
from composer.diffusion.load import load_model
from composer.diffusion.request import Request
from composer.diffusion.samplers import find_sampler
from composer.errors import ComposerError
from composer.experts import ModuleNames, read_expert
from composer.experts.tools import TOOLS, tool_named
from composer.fusions import Gates, LoraRow, Normalised, Sum
from composer.mixture import attach, attach_always
from composer.studio import Comparison, ComposeRequest, Started, Studio
from composer.training.gates.settings import GateTraining
from composer.training.gates.train import train_gates

REQUEST = Request(prompt="a fox", seed=7, steps=3, cfg_scale=3.0, width=16, height=16)


@pytest.mark.parametrize(
    ("name", "tool", "steps"),
    [
        ("lcm-lora-sdv1-5", "LCM", 8),
        ("LCM_LoRA_Weights_SD15", "LCM", 8),
        ("sdxl_lightning_4step_lora", "Lightning", 4),
        ("SDXL-Lightning 8 steps", "Lightning", 8),
        ("Hyper-SD15-8steps-CFG-lora", "Hyper-SD", 8),
        ("Hyper-SDXL-1step-lora", "Hyper-SD", 1),
        ("sd_xl_turbo_lora_v1", "Turbo", 4),
        ("dmd2_sdxl_4step_lora_fp16", "DMD2", 4),
        ("TCD-SDXL-LoRA", "TCD", 4),
        ("lightning_bolts", "", 0),
        ("turbo car", "", 0),
        ("hyperrealism_v2", "", 0),
        ("welcome", "", 0),
        ("sdxl_style", "", 0),
    ],
)
def test_names_of_tools(name: str, tool: str, steps: int) -> None:
    found = tool_named(["", name])
    assert (found.name if found else "", found.steps if found else 0) == (tool, steps)


def test_their_samplers_are_there() -> None:
    for tool in (*TOOLS.values(), tool_named(["hyper-sdxl-1step"])):
        assert tool is not None
        find_sampler(tool.sampler, tool.schedule)
        Request(**tool.settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs, gates for them, and a third one twice: as a tool, and by a name that says none."""
    folder = tmp_path_factory.mktemp("tools") / "loras"
    pair = {
        name: write_lora(folder / f"{name}.safetensors", seed=n)
        for n, name in enumerate(("zibo", "neon"))
    }
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, pair)
    write_lora(folder / "lcm.safetensors", seed=5)
    shutil.copy(folder / "lcm.safetensors", folder / "moon.safetensors")
    write_lora(folder / "tcd.safetensors", seed=5, **{"composer.role": "style"})
    return folder


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return ready(tiny_sd, folder, tmp_path_factory.mktemp("outputs"))


def rows(*names: str) -> tuple[LoraRow, ...]:
    return tuple(LoraRow(name=name, weight=0.5, text_encoder=0.25) for name in names)


def test_a_role_says_that_a_file_is_none(studio: Studio) -> None:
    tools = {card.name: card.info.tool for card in studio.cards()}
    assert {name for name, tool in tools.items() if tool} == {"lcm"}


def image(studio: Studio, asked: ComposeRequest) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(paint(studio, asked).image(), dtype=np.int16)


def test_in_a_sum_it_counts_as_any_lora_and_in_others_at_its_own_weight(studio: Studio) -> None:
    asked = ComposeRequest(request=REQUEST, rows=rows("zibo", "lcm"))
    plain = image(studio, replace(asked, rows=rows("zibo", "moon")))
    bare = image(studio, replace(asked, rows=()))
    assert np.abs(image(studio, asked) - plain).max() <= 1
    assert np.abs(plain - bare).max() > 8
    # the normalised sum would halve both
    full = ComposeRequest(
        request=REQUEST, rows=(LoraRow(name="zibo"), *rows("lcm")), recipe=Normalised()
    )
    summed = replace(full, recipe=Sum())
    assert np.array_equal(image(studio, full), image(studio, summed))
    assert np.array_equal(image(studio, replace(asked, rows=())), bare)


def test_beside_gates_it_is_added_and_comes_back_with_the_picture(studio: Studio) -> None:
    asked = ComposeRequest(request=REQUEST, recipe=Gates(file="pair"))
    events = list(studio.compose(replace(asked, rows=rows("lcm"))))
    (notes,) = [event.notes for event in events if isinstance(event, Started)]
    assert [note for note in notes if "lcm" in note] == [
        "lcm: a LoRA for few steps (LCM). It is added at its weight, whatever fuses the others. It "
        "is meant for 8 steps, CFG 1, LCM."
    ]
    (picture,) = finished(events).pictures
    drawn = np.asarray(picture.image(), dtype=np.int16)
    assert np.abs(drawn - image(studio, asked)).max() > 8
    assert [lora.name for lora in picture.record.loras if lora.unet == 0.5] == ["lcm"]
    again = studio.recall(picture)
    assert again.notes == ()
    assert np.array_equal(image(studio, again.asked), drawn)


def test_it_is_in_every_way_of_a_comparison_and_none_of_its_own(studio: Studio) -> None:
    asked = Comparison(request=REQUEST, rows=rows("zibo", "lcm", "neon"))
    ways = studio.ways(asked)
    assert all(way.asked.rows[-1:] == rows("lcm") for way in ways)
    others = {way.key: [row.name for row in way.asked.rows[:-1]] for way in ways}
    assert (others["bare"], others["alone:zibo"], others["yours"]) == (
        [],
        ["zibo"],
        ["zibo", "neon"],
    )
    # as without it: two LoRAs are weighed and have gates
    without = studio.ways(replace(asked, rows=rows("zibo", "neon")))
    assert [(way.key, way.title, way.detail) for way in ways] == [
        (way.key, way.title, way.detail) for way in without
    ]
    assert "gates:pair" in {way.key for way in without}
    with pytest.raises(ComposerError, match=r"chosen beside lcm, which is in every way\. Choose"):
        studio.ways(replace(asked, rows=rows("lcm")))


def test_limits_are_refused(studio: Studio) -> None:
    row = LoraRow(name="lcm", steps=(0.0, 0.5))
    with pytest.raises(ComposerError, match="'lcm' is for few steps and acts in all of them"):
        studio.compose(ComposeRequest(request=REQUEST, rows=(row,)))


def test_it_sets_what_the_user_leaves_open(tiny_sd: Path, folder: Path, tmp_path: Path) -> None:
    def asked(*options: str) -> Request:
        command = ["generate", "a fox", "--model", str(tiny_sd), "--lora-dir", str(folder)]
        command += ["--output", str(tmp_path), "--size", "16x16", "--seed", "1", "--json"]
        done = CliRunner().invoke(app, [*command, *options])
        assert done.exit_code == 0, done.output
        return Request.from_json(json.loads(done.stdout)["request"])

    request = asked("--lora", "lcm")
    assert (request.steps, request.cfg_scale, request.sampler) == (8, 1.0, "LCM")
    request = asked("--lora", "lcm", "--steps", "2", "--sampler", "Euler")
    assert (request.steps, request.cfg_scale, request.sampler) == (2, 1.0, "Euler")
    assert asked("--lora", "zibo", "--steps", "2").sampler == Request().sampler


def test_gates_are_not_trained_on_it(tiny_sd: Path, folder: Path, tmp_path: Path) -> None:
    model = load_model(tiny_sd)
    modules = ModuleNames.of(model.models, model="tiny")
    expert = read_expert(folder / "lcm.safetensors", modules)
    config = GateTraining(output=tmp_path / "gates.safetensors", prompts=("a",))
    with pytest.raises(ComposerError, match=r"'lcm' is for few steps \(LCM\)"):
        list(train_gates(model, [expert], config))


def test_it_is_attached_below_a_mixture_and_detached_bit_for_bit(
    tiny_sd: Path, folder: Path
) -> None:
    model = load_model(tiny_sd)
    before = {name: its.clone() for name, its in model.unet.state_dict().items()}
    children = dict(model.unet.named_modules())
    modules = ModuleNames.of(model.models, model="tiny")
    one, other = (read_expert(folder / f"{n}.safetensors", modules) for n in ("lcm", "zibo"))
    given = {
        "sample": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor(5),
        "encoder_hidden_states": torch.ones(1, 4, 32),
    }

    @torch.no_grad()
    def run() -> torch.Tensor:
        return model.unet(**given).sample

    with attach(model.models, {"lcm": one.sites, "zibo": other.sites}) as mixture:
        mixture.set_weights({"lcm": 0.5, "zibo": 1.0})
        expected = run()
    with (
        attach_always(model.models, [("lcm", 0.5, one.sites)]),
        attach(model.models, {"zibo": other.sites}, granularity="matrix"),
    ):
        torch.testing.assert_close(run(), expected)
    assert dict(model.unet.named_modules()) == children
    assert all(torch.equal(model.unet.state_dict()[n], its) for n, its in before.items())
