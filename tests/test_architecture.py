"""The rooms of the package: who may import whom, and what importing them must not do."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "composer"
TOYBOX = ROOT / "toybox"

# From the ground up. A room may import itself and the rows before its own.
ROWS = (
    ("errors", "clock", "precision"),
    ("files", "outside", "families"),
    ("settings",),
    ("experts",),
    ("mixture",),
    ("mixlora",),
    ("fusions",),
    ("diffusion", "language"),
    ("training", "evaluation"),
    ("studio",),
    ("api",),
    ("ui",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}
MODEL_LIBRARIES = {"accelerate", "diffusers", "peft", "safetensors", "torch", "transformers"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, with relative names made absolute.

    `from composer import x` counts as `composer.x`, whether x is a room or a name of the package.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module == "composer":
                yield from (f"composer.{alias.name}" for alias in node.names)
            else:
                yield module


def room_of(path: Path) -> str:
    """The room that a file of the package belongs to; "" for the package's own front door."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports_of(path: Path) -> list[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return list(imports(path.read_text(encoding="utf-8"), package))


def rooms_used(path: Path) -> set[str]:
    """The rooms of ours that a file imports, apart from its own."""
    parts = [module.split(".") for module in imports_of(path)]
    ours = {part[1] for part in parts if part[0] == "composer" and len(part) > 1}
    return ours - {room_of(path), "__version__"}


def libraries_used(path: Path) -> set[str]:
    """The libraries of others that a file imports."""
    first = {module.split(".")[0] for module in imports_of(path)}
    return first - {"composer"} - set(sys.stdlib_module_names)


def in_rooms(*rooms: str) -> list[Path]:
    return [path for path in FILES if room_of(path) in rooms]


def test_the_reader_of_imports_sees_every_form() -> None:
    source = (
        "import torch.nn\nfrom composer import studio, errors\nfrom . import gates\n"
        "from .sites import Site\nfrom ..experts import Expert\nfrom .. import ui\n"
        "def later():\n    from composer.ui.page import build\n"
    )
    assert set(imports(source, "composer.mixture")) == {
        "torch.nn",
        "composer.studio",
        "composer.errors",
        "composer.mixture",
        "composer.mixture.sites",
        "composer.experts",
        "composer.ui",
        "composer.ui.page",
    }


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in FILES} - {""} <= HEIGHT.keys(), (
        "a new room needs a row here and in docs/architecture.md"
    )


def test_imports_run_one_way() -> None:
    for path in FILES:
        room = room_of(path)
        height = HEIGHT[room] if room else len(ROWS)
        upward = {used for used in rooms_used(path) if HEIGHT.get(used, len(ROWS)) >= height}
        assert not upward, f"{path}: {room or 'composer'} must not import {sorted(upward)}"


def test_mixture_and_mixlora_stand_on_torch_alone() -> None:
    for path in in_rooms("mixture", "mixlora"):
        assert rooms_used(path) <= {"errors", "settings", "mixture"}, path
        assert libraries_used(path) <= {"torch"}, path


def test_only_the_expansion_of_prompts_knows_the_toybox_and_of_it_no_recipe() -> None:
    used = {
        (path.relative_to(ROOT).as_posix(), module)
        for path in FILES
        for module in imports_of(path)
        if module.split(".")[0] == TOYBOX.name
    }
    assert used == {("composer/studio/wording.py", "toybox.words")}
    grammar = {"captions", "jottings", "reading", "understand", "words", "world"}
    for name in grammar:
        modules = imports_of(TOYBOX / f"{name}.py")
        assert {module.split(".")[1] for module in modules if module.startswith("toybox.")} <= (
            grammar
        ), name


def test_gradio_is_known_to_the_pages_alone() -> None:
    for path in FILES:
        if room_of(path) != "ui":
            assert "gradio" not in libraries_used(path), path


def test_pages_know_no_model_library() -> None:
    for path in in_rooms("ui"):
        assert not libraries_used(path) & MODEL_LIBRARIES, path


# Both would run what a stranger wrote.
DANGEROUS_MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
PICKLES = PACKAGE / "experts" / "pickles.py"
"""The one file that opens others' pickles, for tensors alone, when a user asks for just that."""
DANGEROUS = re.compile(r"torch\.load\(|trust_remote_code=True|\b(?:eval|exec)\(")


def test_nothing_opens_what_can_run_code() -> None:
    for path in [*FILES, *sorted(TOYBOX.rglob("*.py"))]:
        assert not {module.split(".")[0] for module in imports_of(path)} & DANGEROUS_MODULES, path
        # `model.eval()` is PyTorch's word for something harmless.
        source = path.read_text(encoding="utf-8").replace(".eval()", "")
        if path == PICKLES:
            source = re.sub(r"torch\.load\([^()]*, weights_only=True\)", "", source)
        assert not DANGEROUS.search(source), path


# Runs in a fresh Python: any connection, name look-up or new socket on the network ends it.
NO_NETWORK = """
import socket, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise RuntimeError(f"a connection was opened: {event} {arguments}")

sys.addaudithook(refuse)
"""

ONE_IMPORT = """
import importlib
importlib.import_module(NAME)
heavy = {"accelerate", "diffusers", "gradio", "peft", "torch", "transformers"} & sys.modules.keys()
assert not heavy, f"importing {NAME} brought in {sorted(heavy)}"
"""

ALL_IMPORTS = """
import gc, importlib, pkgutil
import composer
names = [module.name for module in pkgutil.walk_packages(composer.__path__, "composer.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
import torch
weights = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Parameter)]
assert not weights, f"{len(weights)} weights were loaded by importing"
assert not torch.cuda.is_initialized(), "the GPU was touched by importing"
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_NETWORK + script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_guard_notices_a_connection() -> None:
    done = run("socket.create_connection(('127.0.0.1', 9))")
    assert "a connection was opened" in done.stderr


@pytest.mark.parametrize("name", ["composer", "composer.cli"])
def test_import_is_light_and_opens_no_connection(name: str) -> None:
    done = run(f"NAME = {name!r}\n{ONE_IMPORT}")
    assert done.returncode == 0, done.stderr


def test_no_room_opens_a_connection_or_loads_a_model_when_imported() -> None:
    done = run(ALL_IMPORTS)
    assert done.returncode == 0, done.stderr


def test_every_name_that_a_room_offers_is_there() -> None:
    """`from composer.studio import *` works, and so do editors that complete from `__all__`."""
    for path in FILES:
        if path.name == "__init__.py":
            room = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
            offered: list[str] = getattr(room, "__all__", [])
            assert [name for name in offered if not hasattr(room, name)] == [], room.__name__
