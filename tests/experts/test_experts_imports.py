"""A library of folders brings no torch with it."""

from __future__ import annotations

import subprocess
import sys

import composer.experts


def test_a_library_needs_no_torch() -> None:
    code = (
        "import sys; from composer.experts import LORAS, Library; "
        "Library(['loras'], LORAS).scan(); "
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_found() -> None:
    for name in composer.experts._HOMES:
        assert getattr(composer.experts, name) is not None
    assert not hasattr(composer.experts, "nothing")
