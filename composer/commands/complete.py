"""`composer complete`: text from a language model, with an adapter on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._language import load
from composer.commands._settings import with_settings
from composer.errors import ComposerError
from composer.language.complete import Asking


@with_settings(Asking)
def complete(
    request: Annotated[list[str], typer.Argument(help="What to ask; several for several answers.")],
    model: options.LanguageModelName,
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
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "float32",
    bits: options.Bits = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: options.AsJson = False,
    **settings: Any,
) -> None:
    """Answer requests; what an adapter was trained to do, it is asked in the same words."""
    from composer.language.complete import complete as answer, with_adapter, with_gates
    from composer.language.records import Record

    if gates is not None and adapter is not None:
        raise ComposerError("Gates bring their LoRAs with them: give --gates or --adapter.")
    asking = Asking(**settings)
    records = [
        Record(prompt=words, answer="")
        if prompt
        else Record(instruction=words, input=given, answer="")
        for words in request
    ]
    language = load(model, device, precision, bits)
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
