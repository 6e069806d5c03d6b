"""How small pictures are shown: enlarged by a good filter. Files keep the real size."""

from __future__ import annotations

from PIL import Image


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """``image`` with its longer side ``side`` pixels (Lanczos); a larger one is left as it is."""
    longer = max(image.size)
    if longer >= side:
        return image
    width, height = (max(1, round(pixels * side / longer)) for pixels in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
