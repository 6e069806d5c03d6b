"""Prior pictures: what the model draws without the LoRA, so that it goes on drawing it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.training.pictures import TrainingPicture, square

STEPS = 20
CFG_SCALE = 4.0
DRAWN_AT_ONCE = 4


def draw_priors(
    model: Model,
    prompts: Sequence[str],
    count: int,
    *,
    resolution: int,
    seed: int,
    cancelled: Callable[[], bool],
) -> Iterator[TrainingPicture]:
    """`count` pictures of the model as it is, going round the prompts, each with its own seed."""
    rounds = [prompts[place % len(prompts)] for place in range(count)]
    drawn = 0
    # Equal prompts are drawn together; sorting keeps their number per call high.
    for prompt, group in itertools.groupby(sorted(rounds)):
        left = len(list(group))
        while left and not cancelled():
            request = Request(
                prompt=prompt,
                seed=seed + drawn,
                steps=STEPS,
                cfg_scale=CFG_SCALE,
                count=min(left, DRAWN_AT_ONCE),
            )
            for event in generate(model, request, cancelled=cancelled):
                if isinstance(event, Picture):
                    drawn += 1
                    left -= 1
                    image = square(event.image, resolution)
                    yield TrainingPicture(image=image, caption=prompt, is_prior=True)
