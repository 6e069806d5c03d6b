"""The app, served in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from composer.studio import Studio
from composer.ui.app import launch

AUTH = ("ann", "open sesame")
HAS_MCP = find_spec("mcp") is not None


@dataclass(frozen=True, kw_only=True)
class Served:
    """An app that answers at a port of this machine, and the studio behind it."""

    studio: Studio
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(studio: Studio, **options: Any) -> Iterator[Served]:
    blocks = launch(studio, **options)
    try:
        yield Served(studio=studio, port=int(blocks.server_port))
    finally:
        blocks.close(verbose=False)
