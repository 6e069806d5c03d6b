"""Random draws are a function of the seed and the batch's number, and share out fairly."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from composer.training.draws import Draws


def draws(**settings: Any) -> Draws:
    values: dict[str, Any] = {
        "seed": 3,
        "sets": (5,),
        "priors": 3,
        "prior_share": 0.25,
        "batch_size": 4,
        "timesteps": 1000,
        "latent_shape": (4, 2, 2),
        "noise_offset": 0.0,
        "caption_dropout": 0.0,
        "flip": False,
    }
    return Draws(**{**values, **settings})


def test_depends_on_nothing_else() -> None:
    state = torch.random.get_rng_state()
    first, again, other = draws().batch(7), draws().batch(7), draws(seed=4).batch(7)
    assert torch.equal(first.noise, again.noise)
    assert first.pictures == again.pictures
    assert torch.equal(first.timesteps, again.timesteps)
    assert not torch.equal(first.noise, other.noise)
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_picture_gets_its_turn() -> None:
    taken = [index for number in range(20) for index in draws().batch(number).pictures]
    counts = Counter(taken)
    assert sum(counts[index] for index in (5, 6, 7)) == 20  # a quarter of 80
    assert {counts[index] for index in range(5)} == {12}
    assert {counts[index] for index in (5, 6, 7)} <= {6, 7}
    assert all(index < 5 for n in range(9) for index in draws(priors=0).batch(n).pictures)
    alone = [draws(batch_size=1).batch(number).pictures[0] for number in range(8)]
    assert sum(index >= 5 for index in alone) == 2


def test_every_set_has_the_same_share_however_large() -> None:
    taken = [i for number in range(30) for i in draws(sets=(2, 6)).batch(number).pictures]
    counts = Counter(taken)
    assert sum(counts[index] for index in (8, 9, 10)) == 30
    assert {counts[index] for index in (0, 1)} <= {22, 23}
    assert {counts[index] for index in range(2, 8)} <= {7, 8}


def test_timesteps_cover_the_whole_range() -> None:
    batch = draws(batch_size=8).batch(0).timesteps
    assert sorted(int(t) // 125 for t in batch) == list(range(8))
    means = torch.stack([draws().batch(n).timesteps.float() for n in range(400)])
    assert means.min() >= 0
    assert means.max() <= 999
    assert abs(means.mean() - 499.5) < 15
    assert (means.mean(dim=0) - 499.5).abs().max() < 60  # at each place of the batch


def test_dropout_flip_and_offset() -> None:
    many = [draws(caption_dropout=0.3, flip=True).batch(n) for n in range(200)]
    dropped = sum(sum(draw.dropped) for draw in many) / 800
    flipped = sum(sum(draw.flipped) for draw in many) / 800
    assert 0.24 < dropped < 0.36
    assert 0.44 < flipped < 0.56
    assert not any(draws().batch(0).dropped + draws().batch(0).flipped)
    moved = draws(noise_offset=0.5).batch(0).noise - draws().batch(0).noise
    assert torch.allclose(moved, moved.mean(dim=(2, 3), keepdim=True).expand_as(moved), atol=1e-6)
