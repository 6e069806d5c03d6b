"""What lies beside a LoRA file: A1111's `<stem>.json`, which may say a `role` too, and a preview
picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from composer.experts.info import ROLES, LoraInfo
from composer.experts.metadata import parse_table, parse_weight

PREVIEW_SUFFIXES = (".preview.png", ".png", ".jpg", ".jpeg", ".webp")
_MAX_BYTES = 2**20


def with_sidecars(info: LoraInfo, path: Path) -> LoraInfo:
    """Add what the user wrote and drew for the LoRA at `path`; it goes before the file's own."""
    user = _read_table(path.with_suffix(".json"))

    def text(key: str) -> str:
        value = user.get(key)
        return value.strip() if isinstance(value, str) else ""

    return replace(
        info,
        trigger=text("activation text") or info.trigger,
        role=role if (role := text("role").lower()) in ROLES else info.role,
        description=text("description") or info.description,
        notes=text("notes"),
        negative=text("negative text") or info.negative,
        weight=parse_weight(user.get("preferred weight"), otherwise=info.weight),
        preview=find_preview(path),
    )


def find_preview(path: Path) -> Path | None:
    """The preview picture of the LoRA at `path`: `<stem>.preview.png`, `.png`, `.jpg`, ..."""
    candidates = (path.with_name(path.stem + suffix) for suffix in PREVIEW_SUFFIXES)
    return next((candidate for candidate in candidates if _lies_beside(candidate, path)), None)


def _lies_beside(candidate: Path, path: Path) -> bool:
    # A link to somewhere else would put a file of the machine on the page.
    return candidate.is_file() and candidate.resolve().is_relative_to(path.parent.resolve())


def _read_table(path: Path) -> dict[str, object]:
    try:
        if not _lies_beside(path, path) or path.stat().st_size > _MAX_BYTES:
            return {}
        return parse_table(path.read_bytes())
    except OSError:
        return {}
