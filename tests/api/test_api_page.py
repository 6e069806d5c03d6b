"""docs/api.md: its examples run as they stand, at the address of a running app."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from served_app import HAS_MCP, Served

from composer.api.routes import sd_api
from composer.api.runs import Runs
from composer.ui.endpoints import ENDPOINTS

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
ADDRESS, PORT = "http://127.0.0.1:7860", "7860"


def examples(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.S | re.M)
    assert found and all(PORT in example for example in found)
    # the tiny model's size, and few steps, so that it takes no time
    smaller = [re.sub(r"\b64\b", "16", example) for example in found]
    return [re.sub(r'("steps": )\d+', r"\g<1>2", example) for example in smaller]


@pytest.mark.parametrize("example", examples("python"))
def test_examples_in_python_run(
    served: Served, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = re.findall(r"^(?:import|from) (\w+)", example, flags=re.M)[0]
    pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example.replace(PORT, str(served.port)), "docs/api.md", "exec"), names)
    made = {"made", "grid"} & names.keys()
    assert made
    if "again" in names:
        assert names["again"].json["warnings"] == []
        assert (tmp_path / "fox.png").is_file()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("example", examples("sh"))
def test_examples_in_the_shell_run(served: Served, example: str) -> None:
    command = "set -eo pipefail; " + example.replace(PORT, str(served.port))
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "PNG" in done.stdout or "gradio.FileData" in done.stdout
    assert "error" not in done.stdout


def test_the_page_names_what_there_is(served: Served) -> None:
    app = sd_api(served.studio, Runs(served.studio))
    known = {
        path.rpartition("/")[2] for route in app.routes if (path := getattr(route, "path", ""))
    }
    table = re.findall(r"^\| (.*?) \|", PAGE, flags=re.M)[2:]
    named = {name.split()[-1] for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    assert named and named <= known
    assert all(f"`/{name}`" in PAGE for name in ENDPOINTS)
    assert f"{ADDRESS}/gradio_api/mcp/" in PAGE and HAS_MCP is not None
