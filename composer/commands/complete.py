"""`composer complete`: text from a language model, with an adapter on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from composer.commands import _options as options
from composer.errors import ComposerError


def register(app: typer.Typer) -> None:
    """Add `composer complete`."""
    app.command("complete")(complete)


def complete(
    request: Annotated[list[str], typer.Argument(help="What to ask; several for several answers.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a MixLoRA adapter, or of a LoRA of peft's.")
    ] = None,
    gates: Annotated[
        Path | None, typer.Option(help="A gate file over LoRAs; in place of an adapter.")
    ] = None,
    lora_dir: Annotated[
        list[Path] | None,
        typer.Option(help="Where the gates' LoRAs lie; beside the gate file; repeatable."),
    ] = None,
    given: Annotated[str, typer.Option("--input", help="What the instruction is about.")] = "",
    prompt: Annotated[
        bool, typer.Option("--prompt", help="The request as it stands, by no template.")
    ] = False,
    template: options.Template = "auto",
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest words.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest words of this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn above temperature 0.")] = 0,
    precision: options.Precision = "float32",
    bits: Annotated[int, typer.Option(help="4 or 8: the base by bitsandbytes.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Answer requests; what an adapter was trained to do, it is asked in the same words."""
    import torch

    from composer.language.complete import Asking, complete as answer, with_adapter, with_gates
    from composer.language.load import load_language_model
    from composer.language.records import Record
    from composer.language.template import TEMPLATES

    if template not in TEMPLATES:
        raise ComposerError(f"There is no template {template!r}: use {', '.join(TEMPLATES)}.")
    if gates is not None and adapter is not None:
        raise ComposerError("Gates bring their LoRAs with them: give --gates or --adapter.")
    asking = Asking(
        tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        template=cast(Any, template),
    )
    records = [
        Record(prompt=words, answer="")
        if prompt
        else Record(instruction=words, input=given, answer="")
        for words in request
    ]
    quantisation: Any = {4: "4bit", 8: "8bit", 16: "none"}.get(bits, f"{bits} bits")
    language = load_language_model(
        model,
        device=device,
        dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
        quantisation=quantisation,
    )
    if gates is not None:
        beside = [gates.parent, gates.parent.parent]
        with with_gates(language, gates, [*(lora_dir or ()), *beside]) as mixture:
            answers = answer(language, records, asking, gates=mixture)
    else:
        with with_adapter(language, adapter):
            answers = answer(language, records, asking)
    if as_json:
        rows = [{"request": r, "answer": a} for r, a in zip(request, answers, strict=True)]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for text in answers:
        typer.echo(text)
