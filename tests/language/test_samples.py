"""Records become tokens of which the answer alone is learnt, and nothing longer than the window."""

from __future__ import annotations

import pytest
from tiny_language import tiny_llama, tiny_tokenizer

from composer.errors import ComposerError
from composer.language.records import Record
from composer.language.samples import encode, window_of

TOKENIZER = tiny_tokenizer()
CHAT = tiny_tokenizer(chat=True)


def texts(record: Record, tokenizer: object = TOKENIZER, template: str = "auto") -> tuple[str, str]:
    (sample,) = encode([record], tokenizer, 200, template).samples  # type: ignore[arg-type]
    decode = tokenizer.decode  # type: ignore[attr-defined]
    return decode(sample.ids[: sample.start]), decode(sample.ids[sample.start :])


def test_the_plain_template() -> None:
    record = Record(instruction="Add.", input="1 1", answer="2")
    assert texts(record) == (
        "### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Answer:\n",
        "2<end>",
    )
    chat = Record(messages=(("user", "q"),), answer="a")
    assert texts(chat) == ("### User:\nq\n\n### Assistant:\n", "a<end>")


def test_the_chat_template_ends_its_own_answers() -> None:
    record = Record(instruction="Add.", input="1 1", answer="2")
    asked = "<|im_start|>user\nAdd.\n\n1 1<|im_end|>\n<|im_start|>assistant\n"
    assert texts(record, CHAT) == (asked, "2<|im_end|>")
    assert texts(record, CHAT, "plain")[1] == "2<end>"


def test_a_prompt_is_left_as_it_stands() -> None:
    record = Record(prompt="once ", answer="upon")
    assert texts(record, CHAT) == ("once ", "upon<end>")


def test_text_alone_is_learnt_but_for_its_first_token() -> None:
    (sample,) = encode([Record(prompt="", answer="abc")], TOKENIZER, 10).samples
    assert (sample.start, len(sample.ids), sample.learnt) == (0, 4, 3)


def test_long_requests_lose_their_beginning_and_long_answers_are_refused() -> None:
    found = encode([Record(prompt="0123456789", answer="ab")], TOKENIZER, 8)
    (sample,) = found.samples
    assert TOKENIZER.decode(sample.ids) == "56789ab<end>"
    assert (sample.start, found.cut) == (5, 1)
    with pytest.raises(ComposerError, match=r"a\.jsonl, line 3: the answer has 9 tokens, .* 8"):
        encode([Record(prompt="x", answer="01234567", origin="a.jsonl, line 3")], TOKENIZER, 8)
    # an answer that fills the window would be called by nothing
    with pytest.raises(ComposerError, match="window"):
        encode([Record(prompt="x", answer="0123456")], TOKENIZER, 8)


def test_a_missing_chat_template_is_said() -> None:
    with pytest.raises(ComposerError, match="no chat template"):
        encode([Record(instruction="x", answer="y")], TOKENIZER, 99, "chat")


def test_a_template_that_refuses_is_said() -> None:
    strict = tiny_tokenizer(chat=True)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ComposerError, match=r"line 1: .*roles must alternate"):
        encode([Record(instruction="x", answer="y", origin="line 1")], strict, 99)


def test_the_window_is_no_longer_than_the_model_reads() -> None:
    model = tiny_llama()
    assert window_of(model, TOKENIZER) == 64
    assert window_of(model, tiny_tokenizer(most=40)) == 40
    assert window_of(model, TOKENIZER, 32) == 32
    with pytest.raises(ComposerError, match="reads 64 tokens"):
        window_of(model, TOKENIZER, 65)
