"""The one place where pickles of others are opened, for tensors alone, when a user asks for that.

PyTorch reads it with `weights_only=True`, which builds tensors and plain containers and nothing
else. Older PyTorch could be fooled there (CVE-2025-32434), and is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

from composer.errors import ComposerError

SAFE_TORCH = (2, 6)


def open_pickle(path: Path) -> object:
    """What the pickle at `path` holds: tensors, numbers and texts in plain containers.

    Raises:
        ComposerError: PyTorch is too old, or it holds anything else.
    """
    import torch

    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or (int(version[1]), int(version[2])) < SAFE_TORCH:
        raise ComposerError(
            f"PyTorch {torch.__version__} cannot open pickles safely: install 2.6 or newer."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken or hostile pickle raises can be anything
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else "it is empty"
        raise ComposerError(
            f"{path}: is no file of tensors alone ({first}). Download it again, from somebody you "
            "trust."
        ) from None
