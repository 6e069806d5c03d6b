"""What a unit sees before its sites run: what its gate may look at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The input of a learned gate.

    hidden: (batch, tokens, width), the unit's input; positions of a picture are its tokens, row
        by row.
    outputs: (experts, batch, tokens, width), by how much each expert alone, at weight 1, would
        change the unit's output (MoLE, equations 7 and 8); None unless the gate asks for them.
    time: (batch, width), the model's own embedding of the timestep; None where it has none.
    grid: (height, width) of the tokens that the gate looks at, None if they are no picture.
    counted: (batch, tokens), nonzero for the tokens of `hidden` that a mean is taken over; None for
        all.
    regions: (pictures, experts, h, w), where the words of each expert act; the rows are a multiple
        of the pictures. None where nobody asked.
    words: (pictures, experts, tokens), 1 for the tokens of the text that each expert may change and
        0 for the others'; the first token is nobody's. None where all may change all. Weights of
        places then go on with those of the tokens.
    """

    hidden: Tensor
    outputs: Tensor | None = None
    time: Tensor | None = None
    grid: tuple[int, int] | None = None
    counted: Tensor | None = None
    regions: Tensor | None = None
    words: Tensor | None = None


def as_tokens(hidden: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
    """A hidden state as (batch, tokens, width), and its grid if it is a feature map."""
    if hidden.ndim == 4:  # (batch, channels, height, width)
        return hidden.flatten(2).transpose(1, 2), (hidden.shape[2], hidden.shape[3])
    if hidden.ndim == 2:  # (batch, width)
        return hidden[:, None], None
    return hidden, None
