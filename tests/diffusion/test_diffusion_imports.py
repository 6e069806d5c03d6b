"""What the page imports from this room brings no torch with it."""

from __future__ import annotations

import subprocess
import sys

import composer.diffusion


def test_requests_and_records_need_no_torch() -> None:
    code = (
        "import sys; from composer.diffusion import Request, SAMPLERS, read_png, parse_prompt; "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_found() -> None:
    for name in composer.diffusion._HOMES:
        assert getattr(composer.diffusion, name) is not None
    assert not hasattr(composer.diffusion, "nothing")
