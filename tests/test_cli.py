"""The `composer` command: what it lists, how it words errors, how little it loads."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file, save_file
from tiny_loras import write_lora
from torch.distributed.run import get_args_parser
from typer.main import get_command
from typer.testing import CliRunner

import composer
from composer import commands
from composer.cli import Commands, app
from composer.errors import ComposerError
from composer.experts.hashes import file_hash_of, tensor_hash_of


def test_help_lists_a_command_for_each_module() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for module in pkgutil.iter_modules(commands.__path__):
        if not module.name.startswith("_"):  # what several commands share
            assert module.name.replace("_", "-") in done.output


def test_version_names_composer_and_its_libraries() -> None:
    done = CliRunner().invoke(app, ["version"])
    assert done.exit_code == 0
    assert f"composer {composer.__version__}" in done.output
    assert "torch 2." in done.output


class TestInspect:
    def said(self, *words: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["inspect", *words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def test_a_file_alone(self, tmp_path: Path) -> None:
        path = write_lora(tmp_path / "hat.safetensors", seed=1, ss_network_module="networks.lora")
        said = self.said(str(path))
        assert (said["kind"], said["naming"], said["rank"]) == (["LoRA"], "kohya", 4)
        assert said["trainer"] == "kohya's sd-scripts (networks.lora)"
        assert said["base"] == "a model with text width 32"
        assert file_hash_of(path).startswith(said["AutoV2"]) and len(said["AutoV2"]) == 10
        assert tensor_hash_of(path).startswith(said["AutoV3"]) and len(said["AutoV3"]) == 12
        assert (said["modules"], said["left"], said["spikes"]) == (4, [], [])
        assert set(said["energy"]) == {"unet.down_blocks_0", "text_encoder.layers_0"}
        assert sum(said["energy"].values()) == pytest.approx(1)
        plain = CliRunner().invoke(app, ["inspect", str(path)]).output
        assert "rank: 4" in plain and "embeddings" not in plain

    def test_names_with_dots_and_numbers(self, tmp_path: Path) -> None:
        """A file names some of a model's modules, and these tell no numbers of blocks."""
        path = tmp_path / "hat.safetensors"
        name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
        save_file(
            {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)},
            path,
        )
        said = self.said(str(path))
        assert (said["modules"], said["spikes"]) == (1, [name])
        assert said["energy"] == {"unet.down_blocks.0": 1}

    def test_beside_a_model(self, tiny_sd: Path, tmp_path: Path) -> None:
        path = write_lora(tmp_path / "hat.safetensors", seed=1)
        stray = "lora_unet_nowhere_attn2_to_v"
        tensors = load_file(path)
        tensors |= {f"{stray}.{slot}.weight": torch.ones(4, 4) for slot in ("lora_up", "lora_down")}
        save_file(tensors, path)
        said = self.said(str(path), "--model", str(tiny_sd))
        assert said["used"] == "4 of 5 (80%)"
        assert sorted(said["left"]) == [f"{stray}.lora_down.weight", f"{stray}.lora_up.weight"]

    def test_a_capped_copy(self, tiny_sd: Path, tmp_path: Path) -> None:
        path, copy = write_lora(tmp_path / "hat.safetensors", seed=1), tmp_path / "cap.safetensors"
        words = (str(path), "--model", str(tiny_sd), "--cap", str(copy))
        refused = CliRunner().invoke(app, ["inspect", *words])
        assert "has nothing to lower" in refused.output and not copy.exists()
        tensors = load_file(path)
        name = next(name for name in tensors if "lora_down" in name)
        tensors[name][0] *= 100
        save_file(tensors, path)
        said = self.said(*words)
        assert (len(said["spikes"]), said["capped"]) == (1, str(copy))
        after = self.said(str(copy))
        assert after["spikes"] == [] and after["modules"] == said["modules"]
        alone = CliRunner().invoke(app, ["inspect", str(path), "--cap", str(copy)])
        assert "needs --model" in alone.output

    def test_what_needs_a_model(self, tmp_path: Path) -> None:
        path = tmp_path / "dora.safetensors"
        tensors = load_file(write_lora(path, seed=1))
        site = next(iter(tensors)).split(".")[0]
        save_file(tensors | {f"{site}.dora_scale": torch.ones(32, 1)}, path)
        said = self.said(str(path))
        assert said["kind"] == ["LoRA", "DoRA"] and "give --model" in said["health"]


@pytest.mark.parametrize("arguments", [["generate"], ["model", "build"]])
def test_a_users_error_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    group = typer.Typer(cls=Commands)
    below = typer.Typer()
    group.add_typer(below, name="model")

    @group.command("generate")
    @below.command("build")
    def fail() -> None:
        raise ComposerError("cat.safetensors: the file is cut off. Download it again.")

    @below.command("other")
    def other() -> None:
        raise AssertionError("not asked for")

    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr == "composer: cat.safetensors: the file is cut off. Download it again.\n"


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    group = typer.Typer(cls=Commands)

    @group.command("one")
    def one() -> None:
        raise RuntimeError("ours")

    @group.command("two")
    def two() -> None: ...

    assert isinstance(CliRunner().invoke(group, ["one"]).exception, RuntimeError)


LAUNCHERS = {"torchrun": get_args_parser, "accelerate launch": launch_command_parser}


def options_of(command: typer.core.TyperCommand) -> list[str]:
    spelt = [spelling for one in command.params for spelling in (*one.opts, *one.secondary_opts)]
    return [spelling for spelling in spelt if spelling.startswith("-")]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_launches_several_processes_leaves_us_our_options(launcher: str) -> None:
    """They read shortened names of their own options even behind the name of our command, and end
    where one could be short for several."""
    parser = LAUNCHERS[launcher]()
    theirs = {spelling for action in parser._actions for spelling in action.option_strings}
    trainings = {
        n: c.load() for n, c in get_command(app).commands.items() if n.startswith("train-")
    }
    assert len(trainings) >= 5
    for name, command in trainings.items():
        ours = options_of(command)
        short = {o for o in ours for t in theirs if t != o and t.startswith(o)}
        assert not short, f"{name}: {sorted(short)} could be short for options of {launcher}"
        read = parser.parse_args(["-m", "composer", name, *ours])
        assert read.training_script_args == [name, *ours]


def test_help_loads_no_model_library() -> None:
    script = (
        "import sys\nfrom composer.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'diffusers', 'transformers', 'gradio'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
