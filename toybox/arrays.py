"""Pictures as arrays of float32, with the types that numpy's and scipy's own code leaves out."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

Floats = NDArray[np.float32]


def floats(values: ArrayLike | Image.Image) -> Floats:
    """Values as they are, in float32."""
    return np.asarray(values).astype(np.float32)


def clipped(values: ArrayLike, low: float, high: float) -> Floats:
    """Values kept from `low` to `high`."""
    return floats(cast(Any, np).clip(values, low, high))


def unit(image: Image.Image) -> Floats:
    """A picture's values from 0 to 1."""
    return floats(floats(image) / 255)


def pictured(values: ArrayLike) -> Image.Image:
    """Values from 0 to 1 as a picture: RGB if the last axis has three, else grey."""
    return Image.fromarray((clipped(values, 0, 1) * 255 + 0.5).astype(np.uint8))


def smoothed(values: Floats, deviation: float) -> Floats:
    """A Gaussian blur that wraps round at the edges."""
    return floats(cast(Any, ndimage).gaussian_filter(values, deviation, mode="wrap"))
