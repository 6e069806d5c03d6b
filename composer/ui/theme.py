"""How the page looks: ink on paper, and colours that belong to the LoRAs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradio.themes import Base, LocalFont
from gradio.themes.utils import colors, sizes

STATIC = Path(__file__).parent / "static"

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


INK: dict[str, str] = {
    "body_background_fill": "var(--paper)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--soft)",
    "background_fill_primary": "var(--sheet)",
    "background_fill_secondary": "var(--sunk)",
    "border_color_primary": "var(--line)",
    "block_background_fill": "transparent",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_label_text_color": "var(--soft)",
    "block_title_text_color": "var(--soft)",
    "block_info_text_color": "var(--faint)",
    "color_accent_soft": "var(--sunk)",
    "input_background_fill": "var(--sunk)",
    "input_border_color": "transparent",
    "input_border_color_focus": "var(--focus)",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "input_placeholder_color": "var(--faint)",
    "checkbox_background_color": "var(--sheet)",
    "checkbox_background_color_selected": "var(--check)",
    "checkbox_border_color": "var(--line-strong)",
    "checkbox_border_color_selected": "var(--check)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_text_color": "var(--ink)",
    "button_primary_background_fill": "var(--ink)",
    "button_primary_text_color": "var(--sheet)",
    "button_secondary_background_fill": "var(--sunk)",
    "button_secondary_text_color": "var(--ink)",
    "error_background_fill": "var(--danger-sheet)",
    "error_text_color": "var(--danger)",
}


def theme() -> Base:
    """Gradio's own parts in the same ink. Light and dark differ in the style sheet alone."""
    # Gradio serves these fonts itself. (Its SemiBold of Plex Sans holds Cyrillic letters alone.)
    base: Any = Base(
        primary_hue=colors.slate,
        secondary_hue=colors.slate,
        neutral_hue=colors.slate,
        radius_size=sizes.radius_lg,
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"),
    )
    both = {name + light: value for name, value in INK.items() for light in ("", "_dark")}
    return base.set(color_accent="var(--ink)", **both)
