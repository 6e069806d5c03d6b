"""What trainings of the U-Net draw: times of all noise levels, the last of them pure noise."""

from __future__ import annotations

import torch

from toybox.assemble import text_encoder_of
from toybox.denoising import draw_timesteps, encode_words, new_scheduler
from toybox.stage_clip import new_clip
from toybox.tokens import MAX_LENGTH, build_tokenizer


def test_the_last_step_is_pure_noise() -> None:
    scheduler = new_scheduler()
    signal = scheduler.alphas_cumprod
    assert signal[-1] == 0
    assert (signal.diff() < 0).all()
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [999 - 100 * step for step in range(10)]


def test_every_batch_sees_all_noise_levels() -> None:
    for _ in range(20):
        t = draw_timesteps(100)
        assert 0 <= t.min() < 20
        assert 940 < t.max() < 1000
        assert 0.8 < (t < 650).float().mean() < 0.96
        assert t[t < 650].sort().values.diff().max() < 20


@torch.no_grad()
def test_words_are_encoded_as_the_pipeline_encodes_them() -> None:
    tokenizer = build_tokenizer()
    encoder = text_encoder_of(new_clip(tokenizer))
    found = encode_words(["a cat", "a cat " * MAX_LENGTH], tokenizer, encoder)
    assert tuple(found.shape[:2]) == (2, MAX_LENGTH)
    # the end of the first is padding, which the pipeline encodes too
    ids = tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    assert torch.allclose(found[:1], encoder(ids).last_hidden_state, atol=1e-5)
