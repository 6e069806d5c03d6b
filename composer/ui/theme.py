"""How the page looks: ink on paper, and colours that belong to the LoRAs alone."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"

MARK = (
    '<svg viewBox="0 0 64 64" aria-hidden="true"><circle cx="24" cy="25" r="15"/>'
    '<circle cx="40" cy="25" r="15"/><circle cx="32" cy="39" r="15"/></svg>'
)

# The page follows the system's choice until the reader chooses; the choice is remembered here.
HEAD = """
<script>
  (() => {
    const kept = localStorage.getItem('composer-light');
    const apply = () => {
      if (kept && document.body) document.body.classList.toggle('dark', kept === 'dark');
    };
    apply();
    document.addEventListener('DOMContentLoaded', apply);
    window.addEventListener('load', () => setTimeout(apply, 0));
  })();
</script>
"""


def static(name: str) -> str:
    """The text of a file of the page."""
    return (STATIC / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Gradio's own parts in the same ink."""
    # Gradio serves these two itself. Its SemiBold holds Cyrillic letters alone.
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.slate,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        text_size=gr.themes.sizes.text_md,
        font=(gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), *fonts),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", weights=(400,)), *mono),
    ).set(
        body_background_fill="var(--paper)",
        body_background_fill_dark="var(--paper)",
        body_text_color="var(--ink)",
        body_text_color_dark="var(--ink)",
        body_text_color_subdued="var(--soft)",
        body_text_color_subdued_dark="var(--soft)",
        background_fill_primary="var(--sheet)",
        background_fill_primary_dark="var(--sheet)",
        background_fill_secondary="var(--sunk)",
        background_fill_secondary_dark="var(--sunk)",
        border_color_primary="var(--line)",
        border_color_primary_dark="var(--line)",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_label_text_color="var(--soft)",
        block_label_text_color_dark="var(--soft)",
        block_title_text_color="var(--soft)",
        block_title_text_color_dark="var(--soft)",
        block_info_text_color="var(--faint)",
        block_info_text_color_dark="var(--faint)",
        input_background_fill="var(--sunk)",
        input_background_fill_dark="var(--sunk)",
        input_border_color="transparent",
        input_border_color_dark="transparent",
        input_border_color_focus="var(--focus)",
        input_border_color_focus_dark="var(--focus)",
        input_shadow="none",
        input_shadow_dark="none",
        input_shadow_focus="none",
        input_shadow_focus_dark="none",
        input_placeholder_color="var(--faint)",
        input_placeholder_color_dark="var(--faint)",
        color_accent="var(--ink)",
        color_accent_soft="var(--sunk)",
        color_accent_soft_dark="var(--sunk)",
        slider_color="var(--ink)",
        slider_color_dark="var(--ink)",
        checkbox_background_color="var(--sheet)",
        checkbox_background_color_dark="var(--sunk)",
        checkbox_background_color_selected="var(--ink)",
        checkbox_background_color_selected_dark="var(--focus)",
        checkbox_border_color="var(--line-strong)",
        checkbox_border_color_dark="var(--line-strong)",
        checkbox_border_color_selected="var(--ink)",
        checkbox_border_color_selected_dark="var(--focus)",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_text_color="var(--ink)",
        checkbox_label_text_color_dark="var(--ink)",
        button_primary_background_fill="var(--ink)",
        button_primary_background_fill_dark="var(--ink)",
        button_primary_text_color="var(--sheet)",
        button_primary_text_color_dark="var(--sheet)",
        button_secondary_background_fill="var(--sunk)",
        button_secondary_background_fill_dark="var(--sunk)",
        button_secondary_text_color="var(--ink)",
        button_secondary_text_color_dark="var(--ink)",
        error_background_fill="var(--danger-sheet)",
        error_background_fill_dark="var(--danger-sheet)",
        error_text_color="var(--danger)",
        error_text_color_dark="var(--danger)",
    )
