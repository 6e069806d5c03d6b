"""Composer in the browser: `python app.py`. Also what a Hugging Face Space runs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def parser() -> argparse.ArgumentParser:
    """The options of the app."""
    options = argparse.ArgumentParser(
        prog="app.py", description="Compose several LoRAs in one Stable Diffusion picture."
    )
    options.add_argument(
        "--model",
        default=str(HERE / "assets" / "toybox"),
        help="a diffusers folder, a .safetensors checkpoint or a hub name (default: the toybox)",
    )
    options.add_argument("--vae", help="a VAE in place of the model's: a folder or a file")
    options.add_argument(
        "--lora-dir",
        action="append",
        metavar="FOLDER",
        help="a folder of LoRAs; may be given several times (default: the LoRAs of the toybox)",
    )
    options.add_argument(
        "--language-model",
        metavar="MODEL",
        help="what expands prompts: a folder or a hub name (default: the toybox's)",
    )
    options.add_argument(
        "--adapter", metavar="FOLDER", help="a MixLoRA or LoRA for the language model"
    )
    options.add_argument("--output-dir", default="outputs", help="where pictures are kept")
    options.add_argument(
        "--host", "--server-name", default="127.0.0.1", help="0.0.0.0 lets other machines in"
    )
    options.add_argument(
        "--listen",
        dest="host",
        nargs="?",
        const="0.0.0.0",
        default=argparse.SUPPRESS,
        metavar="ADDRESS",
        help="the same as --host 0.0.0.0",
    )
    options.add_argument("--port", type=int, help="the first free one from 7860 unless given")
    options.add_argument("--share", action="store_true", help="a public address through Gradio")
    options.add_argument(
        "--auth", "--gradio-auth", metavar="NAME:PASSWORD", help="ask visitors for these"
    )
    options.add_argument(
        "--mcp",
        action="store_true",
        help="also serve tools for agents (MCP); needs `.venv/bin/pip install 'mcp<2'`",
    )
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options.add_argument(
        "--partial",
        action="store_true",
        help="use LoRAs of which much does nothing for this model",
    )
    options.add_argument(
        "--lowvram",
        action="store_true",
        help="less memory on the device, slower: one network there at a time",
    )
    options.add_argument(
        "--dtype",
        help="auto, float32, float16 or bfloat16 (default: float16 on CUDA, else float32)",
    )
    options.add_argument(
        "--open",
        "--inbrowser",
        action=argparse.BooleanOptionalAction,
        help="open the browser (default: where there is one to see it)",
    )
    return options


def main() -> None:
    """Serve the page; the model is loaded once the page is up."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    given = parser().parse_args()
    auth = None
    if given.auth is not None:
        name, colon, password = given.auth.partition(":")
        if not (name and colon and password):
            sys.exit("--auth must be of the form NAME:PASSWORD")
        auth = (name, password)
    if given.mcp and importlib.util.find_spec("mcp") is None:
        sys.exit("--mcp needs the package mcp: install it with `.venv/bin/pip install 'mcp<2'`.")

    from composer.studio import Studio
    from composer.ui.app import launch, serve

    studio = Studio(
        given.model,
        given.lora_dir or [HERE / "loras"],
        given.output_dir,
        device=given.device,
        dtype=given.dtype,
        vae=given.vae,
        lowvram=given.lowvram,
        partial=given.partial,
        language_model=given.language_model,
        adapter=given.adapter,
    )
    try:
        blocks = launch(
            studio,
            host=given.host,
            port=given.port,
            share=given.share,
            auth=auth,
            mcp=given.mcp,
            open_browser=sys.stdout.isatty() if given.open is None else given.open,
        )
    except OSError as error:
        where = f"{given.host}:{given.port or 'any port from 7860'}"
        sys.exit(
            f"The page cannot be served at {where} ({str(error).split('.')[0]}). Another program "
            "may be there already: give another --port, or another --host."
        )
    serve(blocks)


if __name__ == "__main__":
    main()
