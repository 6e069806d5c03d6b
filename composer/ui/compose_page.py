"""The first page: choose LoRAs, weigh them, say what to paint, see it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from composer.studio import Studio
from composer.ui.actions import Actions
from composer.ui.layout import Page, lay_out

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Small things do not wait in Gradio's queue behind pictures.
QUICK: dict[str, Any] = {**PRIVATE, "queue": False}
# Only what goes through the queue can show a note.
NOTING: dict[str, Any] = {**PRIVATE, "concurrency_limit": None}

# The form as the proposal has it, if it still is as the page filled it before; else as it is now.
TAKE_PROPOSAL = """(proposal, mixer, fusion, prompt, pins) => {
    const names = (mixer || []).map((row) => row.name);
    const untouched = proposal && prompt === proposal.before.prompt
        && JSON.stringify(names) === JSON.stringify(proposal.before.names);
    return untouched ? proposal.form : [mixer, fusion, prompt, pins];
}"""


def add(
    blocks: gr.Blocks,
    studio: Studio,
    masthead: gr.HTML | None = None,
    tab: gr.Tab | None = None,
) -> Page:
    """Add the page to the Blocks, which are open, under the head of all pages if there is one.

    tab: the page's own; whenever it is opened, gates that were trained meanwhile are there, and
        pictures that were made on other pages.
    """
    page = lay_out(masthead)
    actions = Actions(studio, page)
    form = list(page.form.values())
    filled_in = [*form, page.pinning]
    greeted = blocks.load(
        actions.greet,
        outputs=[page.masthead, page.library, page.strip, page.expander, *form, *page.examples],
        **NOTING,
    )
    offered = [page.library, page.fusion, page.gates]
    greeted.then(
        actions.greet_gates, outputs=[*offered, page.proposal, *page.gate_examples], **NOTING
    ).then(None, [page.proposal, *page.filled], page.filled, js=TAKE_PROPOSAL, **NOTING)
    # The events of our own components have names of ours, which Gradio's types do not know.
    library: Any = page.library
    mixer: Any = page.mixer
    strip: Any = page.strip
    gates: Any = page.gates
    gate_map: Any = page.gate_map
    expander: Any = page.expander
    library.refresh(actions.refresh, page.fusion, offered, **QUICK)
    if tab is not None:
        known = [page.fusion, page.gates, page.strip]
        tab.select(actions.reopen, [page.fusion, page.current], known, **QUICK)
    words = [page.prompt, page.triggers]
    mixer.added(actions.add_trigger, words, page.prompt, **QUICK)
    settings = [page.steps, page.cfg_scale, page.sampler, page.schedule]
    mixer.added(actions.take_settings, outputs=settings, **NOTING)
    mixer.removed(actions.remove_trigger, words, page.prompt, **QUICK)
    mixer.added(actions.gates.grown, page.fusion, page.fusion, **NOTING)
    expander.expand(
        actions.words.expand,
        [page.prompt, page.mixer, page.fusion, page.triggers, page.expander],
        [page.prompt, page.expander],
        **NOTING,
    )
    expander.back(
        actions.words.back,
        [page.mixer, page.fusion, page.triggers, page.expander],
        [page.prompt, page.expander],
        **QUICK,
    )
    chosen = [page.fusion, page.mixer]
    followed = [*chosen, page.gates, page.places, *page.parameters]
    page.fusion.change(actions.gates.follow, chosen, followed, **QUICK)
    for field in page.parameters:
        done: Any = getattr(field, "blur" if isinstance(field, gr.Number) else "input")
        given = [page.fusion, *page.parameters]
        for event in (done, *([field.submit] if isinstance(field, gr.Number) else [])):
            event(actions.gates.set_parameters, given, given, **NOTING)
    gates.choose(actions.gates.choose, outputs=page.fusion, **QUICK)
    gates.leave(actions.gates.leave, outputs=page.fusion, **QUICK)
    filled = page.filled
    for number, button in enumerate(page.examples):
        button.click(actions.example(number), outputs=filled, **QUICK)
    for number, button in enumerate(page.gate_examples):
        button.click(actions.gate_example(number), outputs=filled, **NOTING)
    gr.on(  # pyright: ignore[reportUnknownMemberType]
        [page.generate.click, page.prompt.submit],
        actions.generate,
        form,
        [*page.shown, page.strip, page.seed, page.stop],
        # The studio has the queue that people see; here everybody gets in.
        **NOTING,
    )
    page.other_way.click(
        actions.remake,
        page.current,
        [*page.shown, page.strip, page.stop, *filled_in],
        **NOTING,
    )
    gate_map.look(actions.gates.look, outputs=gate_map, **NOTING)
    pinned = [page.pins, page.pinning]
    gate_map.pin(actions.gates.pin, [page.pins, page.mixer], pinned, **QUICK)
    page.stop.click(actions.stop, outputs=page.stop, **QUICK)
    strip.pick(actions.pick, outputs=page.shown, **QUICK)
    page.use.click(actions.use, page.current, filled_in, **NOTING)
    page.begin.click(actions.begin, page.current, [page.start, page.starting], **NOTING)
    page.start.upload(actions.uploaded, page.start, page.start, **QUICK)
    page.same_seed.click(actions.reuse_seed, page.current, [page.seed, page.new_seed], **NOTING)
    # another prompt than the one that was expanded: there is nothing to go back to
    replaced = [button.click for button in (*page.examples, *page.gate_examples)]
    replaced += [page.use.click, page.other_way.click, page.restore.upload]
    gr.on(  # pyright: ignore[reportUnknownMemberType]
        replaced, actions.words.offer, outputs=page.expander, **QUICK
    )
    page.restore.upload(actions.restore, page.restore, [page.restore, *filled_in], **NOTING)
    return page
