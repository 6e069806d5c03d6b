"""The button beside the prompt: what it writes, what it takes back, what it says is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from tiny_loras import write_lora

from composer.errors import ComposerError
from composer.fusions import LoraRow, Sum
from composer.studio import Studio
from composer.ui import views
from composer.ui.expand_actions import SAME, ExpandActions, Expansion
from composer.ui.layout import Page, lay_out


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """One that loads no model; it has two LoRAs."""
    for seed, (name, words) in enumerate({"zibo": "zibo fox", "neon": "in neon style"}.items()):
        told = {"modelspec.trigger_phrase": words}
        write_lora(tmp_path / "loras" / f"{name}.safetensors", seed=seed, **told)
    return Studio(tmp_path / "model", [tmp_path / "loras"], tmp_path / "outputs")


@pytest.fixture
def page() -> Page:
    with gr.Blocks():
        return lay_out()


@pytest.fixture
def asked(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the studio was asked; it answers with the words and the seed."""
    found: list[Any] = []

    def expand(
        prompt: str, loras: tuple[str, ...], *, triggers: bool, whole: tuple[str, ...], seed: int
    ) -> str:
        found.append((prompt, loras, triggers, seed))
        if prompt == "wrong":
            raise ComposerError("Too long: <b>shorten</b>.")
        if whole:
            return " and ".join(whole)
        if prompt == "broken":
            raise RuntimeError("out of ink")
        return prompt if prompt == "same" else f"{prompt} in the snow {seed}"

    monkeypatch.setattr(studio.wording, "expand", expand)
    return found


def mixer(*rows: LoraRow) -> list[Any]:
    return [views.row_view(row, None, Sum()) for row in rows]


def test_words_become_a_prompt_again_another_and_back(
    studio: Studio, page: Page, asked: list[Any]
) -> None:
    actions = ExpandActions(studio, page)
    rows = mixer(LoraRow(name="zibo"), LoraRow(name="neon", on=False))
    first, second = actions.expand("fox", rows, "weighted", True, {"phase": "idle"})
    assert first == {page.expander: {"phase": "working"}}
    assert second[page.prompt] == "fox in the snow 0"
    kept = second[page.expander]
    _, again = actions.expand(second[page.prompt], rows, "weighted", True, kept)
    assert again[page.prompt] == "fox in the snow 1"
    assert asked == [("fox", ("zibo",), True, 0), ("fox", ("zibo",), True, 1)]
    back = actions.back(rows, "weighted", True, again[page.expander])
    assert back[page.prompt] == "fox"
    assert back[page.expander]["phase"] in ("idle", "off")


def test_a_prompt_that_was_changed_is_a_new_one(
    studio: Studio, page: Page, asked: list[Any]
) -> None:
    actions = ExpandActions(studio, page)
    kept = Expansion(typed="fox", made="a fox", seed=4, loras=()).view()
    list(actions.expand("a fox, red", [], "weighted", False, kept))
    assert asked == [("a fox, red", (), False, 0)]


def test_loras_chosen_since_bring_their_words_back_too(
    studio: Studio, page: Page, asked: list[Any]
) -> None:
    actions = ExpandActions(studio, page)
    kept = Expansion(typed="a cat, zibo fox", made="...", seed=0, loras=("zibo",)).view()
    neon = mixer(LoraRow(name="neon"))
    assert actions.back(neon, "weighted", True, kept)[page.prompt] == "a cat, in neon style"
    assert actions.back(neon, "weighted", False, kept)[page.prompt] == "a cat, zibo fox"
    gone = mixer(LoraRow(name="gone"))
    assert actions.back(gone, "weighted", True, kept)[page.prompt].startswith("a cat")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("wrong", "Too long: <b>shorten</b>."), ("broken", "RuntimeError: out of ink")],
)
def test_what_is_wrong_is_told_in_place(
    studio: Studio, page: Page, asked: list[Any], prompt: str, told: str
) -> None:
    *_, last = ExpandActions(studio, page).expand(prompt, [], "weighted", True, None)
    assert page.prompt not in last
    assert last[page.expander]["phase"] == "failed"
    assert last[page.expander]["note"].startswith(told)


def test_a_mixloras_words_come_out_whole(
    studio: Studio, page: Page, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "triggers", lambda recipe: (f"{recipe.file} fox", "tavo robot"))
    *_, last = ExpandActions(studio, page).expand("fox", [], "mixlora:zibo", True, None)
    assert last[page.prompt] == "zibo fox and tavo robot"


def test_a_mixlora_that_is_gone_is_told(studio: Studio, page: Page, asked: list[Any]) -> None:
    *_, last = ExpandActions(studio, page).expand("fox", [], "mixlora:gone", True, None)
    assert last[page.expander]["phase"] == "failed" and "gone" in last[page.expander]["note"]


def test_nothing_more_to_say_is_said(studio: Studio, page: Page, asked: list[Any]) -> None:
    *_, last = ExpandActions(studio, page).expand("same", [], "weighted", True, None)
    assert last == {page.expander: {"phase": "same", "note": SAME}}


def test_without_a_model_the_button_is_off_with_the_reason(tmp_path: Path, page: Page) -> None:
    studio = Studio("m", [], tmp_path, language_model=str(tmp_path / "nowhere"))
    offer = ExpandActions(studio, page).offer()
    assert offer["phase"] == "off" and "nowhere" in offer["note"]


@pytest.mark.parametrize(
    "told",
    [None, 3, [], {}, {"phase": "done"}, {"phase": "done", "typed": "a", "made": "b", "seed": "x"}]
    + [{"phase": "done", "typed": "a", "made": "b", "loras": [], "seed": s} for s in (True, 2.7)],
)
def test_what_a_browser_makes_up_is_no_expansion(
    studio: Studio, page: Page, asked: list[Any], told: object
) -> None:
    assert Expansion.read(told) is None
    assert page.prompt not in ExpandActions(studio, page).back([], "weighted", True, told)
    list(ExpandActions(studio, page).expand(None, "rubbish", "weighted", True, told))
    assert not asked


@pytest.mark.parametrize(("strength", "loras"), [(1.0, ("zibo", "neon")), (0.0, ("neon",))])
def test_a_lora_of_no_strength_under_gates_brings_no_trigger(
    studio: Studio,
    page: Page,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    strength: float,
    loras: tuple[str, ...],
) -> None:
    monkeypatch.setattr(studio, "triggers", lambda recipe: ())
    rows = mixer(LoraRow(name="zibo"), LoraRow(name="neon"))
    rows[0]["strength"] = strength
    list(ExpandActions(studio, page).expand("a cat", rows, "gates:pair", True, None))
    assert [names for _, names, *_ in asked] == [loras]
