"""What all tests share: tiny Stable Diffusion folders, made offline from the real classes, and in
which order and process they run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before PyTorch is imported: the processes of a run share the cores, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest
from byte_pairs import byte_characters
from xdist.scheduler import LoadFileScheduling

TOKENS = 32  # not CLIP's 77, so that code which assumes 77 fails
BROWSER = "tests/browser/"
LONGEST = (BROWSER, "tests/studio/", "tests/training/", "tests/benchmarks/", "tests/language/")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is alone with it in the end."""

    def place(item: pytest.Item) -> int:
        found = (n for n, room in enumerate(LONGEST) if item.nodeid.startswith(room))
        return next(found, len(LONGEST))

    items.sort(key=place)


class Scheduling(LoadFileScheduling):
    """A file's tests share their models, and those in the browser one app: each of these runs in
    one process."""

    def _split_scope(self, nodeid: str) -> str:
        return BROWSER if nodeid.startswith(BROWSER) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def make_tiny_sd(folder: Path, *, xl: bool = False, **scheduler_settings: Any) -> Path:
    """Save a StableDiffusionPipeline of width 32 with fixed random weights (seconds, a few MB).

    xl: a StableDiffusionXLPipeline instead, with a second text encoder of width 48.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
        StableDiffusionXLPipeline,
    )
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    characters = byte_characters()
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}

    def tokens(pad: str) -> Any:
        return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS, pad_token=pad)

    def text(width: int) -> Any:
        return CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=24,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )

    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "transformer_layers_per_block": [2, 1],
        "use_linear_projection": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(text(32))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=80 if xl else 32,
            attention_head_dim=8,
            **(added if xl else {}),
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            norm_num_groups=8,
            latent_channels=4,
            sample_size=16,
        )
        second = CLIPTextModelWithProjection(text(48)) if xl else None
    scheduler = DDIMScheduler(
        **{
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            **scheduler_settings,
        }
    )
    parts: dict[str, Any] = {
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokens("<|endoftext|>"),
        "unet": unet.eval(),
        "scheduler": scheduler,
    }
    made: Any = StableDiffusionPipeline
    if second is not None:
        made = StableDiffusionXLPipeline
        parts |= {"text_encoder_2": second.eval(), "tokenizer_2": tokens("!</w>")}
        parts |= {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts |= {"requires_safety_checker": False}
    made(**parts).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SDXL: two text encoders, pooled text and sizes, 16 x 16 pixels."""
    return make_tiny_sd(tmp_path_factory.mktemp("tiny_sdxl"), xl=True)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Stable Diffusion: epsilon prediction, 16 x 16 pixels, 32 tokens."""
    return make_tiny_sd(tmp_path_factory.mktemp("tiny_sd"))


@pytest.fixture(scope="session")
def tiny_zero_snr_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with v-prediction, zero terminal SNR and trailing spacing, like the toybox."""
    return make_tiny_sd(
        tmp_path_factory.mktemp("tiny_zero_snr_sd"),
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
