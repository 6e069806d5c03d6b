"""How a record is worded for a model: the model's own chat template, or a plain one.

Training and completing word a request by the same function, so that a model is asked as it learnt.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from composer.errors import ComposerError
from composer.language.records import Record

Template = Literal["auto", "chat", "plain"]
TEMPLATES: tuple[Template, ...] = get_args(Template)
"""`auto` is the tokenizer's chat template if it has one, and else the plain one."""


def worded(record: Record, tokenizer: Any, template: Template = "auto") -> tuple[str, str, bool]:
    """What the model is given and what it is to answer, as texts.

    The third value says whether the texts hold the model's special tokens already, as chat
    templates write them. A record with a `prompt` is left as it stands.

    Raises ComposerError where a chat template is asked for and missing, or refuses the record.
    """
    if record.prompt is not None:
        return record.prompt, record.answer, False
    if not uses_chat(tokenizer, template):
        return _plain(record), record.answer, False
    messages = [{"role": role, "content": content} for role, content in _messages(record)]
    reply = {"role": "assistant", "content": record.answer}
    try:
        asked: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        whole: str = tokenizer.apply_chat_template([*messages, reply], tokenize=False)
    except Exception as error:  # whatever the template's author wrote, jinja2's errors among it
        raise ComposerError(
            f"{record.origin}: the model's chat template refuses this record ({error}): change the"
            " record, or use the plain template."
        ) from error
    if not whole.startswith(asked):
        raise ComposerError(
            f"{record.origin}: the model's chat template words the request otherwise once it is"
            " answered: use the plain template."
        )
    # templates end with a line break that no model says after its end of turn
    return asked, whole[len(asked) :].rstrip("\n"), True


def uses_chat(tokenizer: Any, template: Template) -> bool:
    """Whether the tokenizer's own chat template is taken."""
    has = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has:
        raise ComposerError("This model's tokenizer has no chat template: use the plain template.")
    return has and template != "plain"


def _messages(record: Record) -> tuple[tuple[str, str], ...]:
    if record.messages:
        return record.messages
    asked = f"{record.instruction}\n\n{record.input}" if record.input else record.instruction
    return (("user", asked),)


def _plain(record: Record) -> str:
    if record.messages:
        parts = [f"### {role.capitalize()}:\n{content}\n\n" for role, content in record.messages]
        return "".join(parts) + "### Assistant:\n"
    given = f"### Input:\n{record.input}\n\n" if record.input else ""
    return f"### Instruction:\n{record.instruction}\n\n{given}### Answer:\n"
