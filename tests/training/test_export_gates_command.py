"""`composer export-gates`: what it prints, and how it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gates import write_gates
from tiny_loras import write_lora
from typer.testing import CliRunner, Result

from composer.cli import app
from composer.diffusion.png import read_png


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    """A LoRA folder with a pair, and gates for it."""
    folder = tmp_path / "loras"
    loras = {
        name: write_lora(folder / f"{name}.safetensors", seed=seed)
        for seed, name in enumerate(("zibo", "neon"))
    }
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, loras)
    return folder


def export(tiny_sd: Path, folder: Path, output: Path, *arguments: str) -> Result:
    places = ["--model", tiny_sd, "--lora-dir", folder, "-o", output]
    fixed = [*map(str, places), "--device", "cpu", "--pictures", "1", "--steps", "3"]
    return CliRunner().invoke(app, ["export-gates", *fixed, *arguments])


def test_one_file_its_loss_and_the_block_weights(
    tiny_sd: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "both.safetensors"
    done = export(tiny_sd, folder, output, "pair", "--prompt", "zibo in neon", "--lbw")
    assert done.exit_code == 0, done.output
    path, zibo, neon, loss, of_strings = done.stdout.splitlines()
    assert path == str(output) and output.is_file()
    assert zibo.strip().startswith("<lora:zibo:1:lbw=") and neon.count(",") == 16
    assert loss.startswith("loss 0.") and of_strings.startswith("loss 0.")


def test_by_path_in_bins_for_diffusers(tiny_sd: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "both.safetensors"
    gates = str(folder / "gates" / "pair.safetensors")
    more = ("--prompt", "zibo", "--bins", "3", "--naming", "diffusers")
    done = export(tiny_sd, folder, output, gates, *more)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == str(tmp_path / "both-1of3.safetensors") and Path(lines[0]).is_file()
    assert "steps 2 to 2 of 3 (33% to 67% of the sampling" in lines[3]
    assert not output.exists() and len(lines) == 8
    # and played so, by the command that it tells
    played = lines[6].removeprefix("in Composer: composer ").replace("PROMPT", "zibo").split()
    assert played[-1] == "both-3of3=1,0@0.666667:1"
    where = ["--model", str(tiny_sd), "--output", str(tmp_path / "outputs"), "--steps", "3"]
    made = CliRunner().invoke(app, [*played, *where, "--size", "16x16", "--device", "cpu"])
    assert made.exit_code == 0, made.output
    fusion = read_png(Path(made.stdout.strip())).fusion
    assert fusion["steps"]["both-2of3"] == [0.333333, 0.666667]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pear", "--prompt", "a"), "Did you mean 'pair'?"),
        (("pair",), "give prompts that name all"),
        (("pair", "--prompt", "a", "--bins", "4"), "4 bins of 3 steps"),
        (("pair", "--naming", "onnx"), "naming 'onnx' is unknown"),
        (("pair", "--prompt", "a", "--steps", "5000"), "5000 steps are more than the 999"),
    ],
)
def test_says_what_is_wrong(
    tiny_sd: Path, folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = export(tiny_sd, folder, tmp_path / "both.safetensors", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_what_it_is_made_from_is_not_written_over(tiny_sd: Path, folder: Path) -> None:
    done = export(tiny_sd, folder, folder / "zibo.safetensors", "pair", "--prompt", "a")
    assert done.exit_code == 2 and "made from" in done.output
