"""The pinned packages: complete, what the package asks for, and fit for any machine."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def pins(lock: str) -> dict[str, list[Requirement]]:
    """The pins of a lock by package; one package may have one for each range of Pythons."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(pin.name, []).append(pin)
    return found


@pytest.mark.parametrize(("lock", "extra"), [("requirements.lock", ""), (LOCKS[1], "dev")])
def test_everything_the_package_asks_for_is_pinned(lock: str, extra: str) -> None:
    pinned = pins(lock)
    wanted = [Requirement(line) for line in metadata.requires("composer-sd") or ()]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert wanted
    for requirement in wanted:
        for pin in pinned[requirement.name]:
            (version,) = (part.version for part in pin.specifier)
            assert version in requirement.specifier, f"{lock}: {pin}; run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_serves_machines_with_and_without_a_gpu(lock: str) -> None:
    pinned = pins(lock)
    assert [str(pin) for pin in pinned["torch"]] == ["torch==2.13.0"]
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda", "triton"))]
    assert "://" not in (ROOT / lock).read_text(encoding="utf-8")


def test_the_tools_use_the_versions_of_the_app() -> None:
    tools = pins("requirements-dev.lock")
    for name, of_app in pins("requirements.lock").items():
        assert [str(pin) for pin in tools[name]] == [str(pin) for pin in of_app]
