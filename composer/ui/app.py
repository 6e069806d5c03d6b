"""The browser app: the pages in one frame, and how it is served."""

from __future__ import annotations

import contextlib
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.routing import Mount

from composer.api import MOUNTED, Guard, Runs, sd_api
from composer.studio import Studio
from composer.ui import compare_page, compose_page, endpoints, train_page
from composer.ui.layout import head
from composer.ui.theme import HEAD, STATIC, static, theme

MAX_UPLOAD = "40mb"
HOUR = 3600
MCP = "/gradio_api/mcp"
"""Where Gradio has its tools for agents, which it guards by no password of its own."""


def build(studio: Studio, runs: Runs | None = None) -> gr.Blocks:
    """The app's pages; they show the studio and keep nothing of their own but what is typed.

    runs: where the pictures are made that other programs ask for.
    """
    with gr.Blocks(
        title="Composer", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, HOUR)
    ) as blocks:
        endpoints.add(blocks, studio, runs or Runs(studio))  # first, so that the names are theirs
        masthead = head()
        with gr.Tabs(elem_id="pages"):
            with gr.Tab("Compose", id="compose") as compose:
                first = compose_page.add(blocks, studio, masthead, compose)
            with gr.Tab("Train gates", id="train") as tab:
                train_page.add(tab, studio)
            with gr.Tab("Compare", id="compare") as tab:
                compare_page.add(tab, studio, first)
    blocks.queue(max_size=64, api_open=False)
    return blocks


def launch(
    studio: Studio,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    mcp: bool = False,
    open_browser: bool = False,
) -> gr.Blocks:
    """Serve the app and return when it answers; the studio's model is loaded after that.

    mcp: whether the named endpoints are tools for agents too.
    """
    runs = Runs(studio)
    blocks = build(studio, runs)
    options: dict[str, Any] = {
        "server_name": host,
        "server_port": port,
        "share": share,
        "auth": auth,
        "app_kwargs": {
            "routes": [Mount(MOUNTED, app=sd_api(studio, runs))],
            "middleware": [Middleware(Guard, paths=(MOUNTED, MCP), auth=auth)],
        },
        "mcp_server": mcp,
        "inbrowser": open_browser,
        "prevent_thread_lock": True,
        "theme": theme(),
        "css": "".join(map(static, ("composer.css", "train.css", "compare.css"))),
        "head": HEAD,
        "favicon_path": STATIC / "favicon.svg",
        "footer_links": [],
        "run_history": False,
        "show_error": True,
        "strict_cors": True,
        "max_file_size": MAX_UPLOAD,
        "enable_monitoring": False,
        "ssr_mode": False,
    }
    blocks.launch(**options)
    studio.start()
    return blocks


def serve(blocks: gr.Blocks) -> None:
    """Stay until the app is ended from the keyboard."""
    with contextlib.suppress(KeyboardInterrupt):
        blocks.block_thread()
