"""What a file is, judged by its first bytes, when it is not the safetensors it should be."""

from __future__ import annotations

REFUSED_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
"""Endings under which PyTorch pickles are handed around."""

_PICKLE_REMEDY = (
    "Pickles can run any program when they are opened, so Composer reads .safetensors only and "
    "never opens them. Look for the .safetensors version of this LoRA, or convert the file with a "
    "tool you trust."
)
_DOWNLOAD_REMEDY = "Download the file itself again and replace this one."


def is_safetensors_start(start: bytes) -> bool:
    """Whether a file's first nine bytes can be those of a safetensors file: a length, then `{`."""
    return len(start) >= 9 and start[8:9] == b"{"


def describe_foreign(start: bytes) -> str | None:
    """Say what a file that starts with these bytes is, and what to do; None if it is not known.

    The sentence has no subject: it follows a file name.
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"PK\x03\x04"):
        return f"is a zip archive, as PyTorch saves pickles (.pt, .bin, .ckpt). {_PICKLE_REMEDY}"
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return f"is a Python pickle. {_PICKLE_REMEDY}"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")):
        return (
            "is a web page saved under the name of a LoRA: the download needed a login or the "
            f"link was wrong. {_DOWNLOAD_REMEDY}"
        )
    if text.startswith(b"version https://git-lfs"):
        return (
            "is only a git-lfs pointer, not the weights: run `git lfs pull` in its folder, or "
            "download the file itself."
        )
    if start.startswith(b"GGUF"):
        return "is a GGUF model file, not a LoRA in safetensors."
    if text.startswith(b"{"):
        return f"is a JSON text, perhaps a server's error answer. {_DOWNLOAD_REMEDY}"
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")):
        return f"is a picture, not a LoRA. {_DOWNLOAD_REMEDY}"
    return None
