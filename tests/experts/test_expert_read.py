"""Every tensor of a file becomes a factor, is reported as unmatched, or refuses the file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from lora_files import ATTENTION, KOHYA, SMALL, kohya_pair, raw_file, save
from torch import nn

from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert, read_header
from composer.experts.metadata import read_info
from composer.experts.patterns import compile_pattern
from composer.experts.read import own_names

TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lora.safetensors"


def read(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Expert:
    return read_expert(save(path, tensors, **metadata), SMALL, partial=True)


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in kohya_pair().items()}


def test_factors_scale_and_hashes(path: Path) -> None:
    tensors = kohya_pair(rank=4) | {f"{KOHYA}.alpha": torch.tensor(2.0)}
    expert = read(path, tensors)
    factors = expert.sites[ATTENTION]
    assert (expert.name, factors.rank, factors.scale) == ("lora", 4, 0.5)
    # Four ones times four ones, halved.
    torch.testing.assert_close(factors.dense(), torch.full((32, 32), 2.0))
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert expert.sha256 == hashlib.sha256(content).hexdigest()
    assert expert.tensor_hash == hashlib.sha256(content[start:]).hexdigest()


def test_the_tensor_hash_outlives_an_edit_of_the_metadata(path: Path) -> None:
    before = read(path, kohya_pair())
    after = read(path, kohya_pair(), ss_output_name="another")
    assert before.sha256 != after.sha256
    assert before.tensor_hash == after.tensor_hash


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_are_float32(path: Path, dtype: torch.dtype) -> None:
    expert = read(path, {name: tensor.to(dtype) for name, tensor in kohya_pair().items()})
    factors = expert.sites[ATTENTION]
    assert factors.down.dtype == factors.up.dtype == torch.float32


def test_without_alpha_the_scale_is_one(path: Path) -> None:
    tensors = kohya_pair()
    del tensors[f"{KOHYA}.alpha"]
    assert read(path, tensors).sites[ATTENTION].scale == 1


@pytest.mark.parametrize(
    "name",
    [
        KOHYA,
        KOHYA.replace("lora_unet_", "lora_unet_unet_"),
        # The original code's number for the same block.
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k",
    ],
)
def test_spellings_of_one_module(path: Path, name: str) -> None:
    expert = read(path, renamed(KOHYA, name))
    assert set(expert.sites) == {ATTENTION}
    assert expert.unmatched == ()


@pytest.mark.parametrize(("down", "up"), [("lora_down", "lora_up"), ("lora_A", "lora_B")])
def test_names_of_comfyui(path: Path, down: str, up: str) -> None:
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    words = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = renamed(KOHYA, name) | renamed(KOHYA, words)
    tensors = {
        key.replace("lora_down", down).replace("lora_up", up): tensor
        for key, tensor in tensors.items()
    }
    tensors[f"{words}.alpha"] = torch.tensor(1.0)
    expert = read(path, tensors)
    assert (expert.unmatched, expert.info.format) == ((), "ComfyUI")
    scales = {site: factors.scale for site, factors in expert.sites.items()}
    assert scales == {ATTENTION: 1.0, "text_encoder.encoder.layers.0.self_attn.q_proj": 0.5}
    with pytest.raises(ComposerError, match=r"made for SDXL.*none of its modules"):
        read(path, renamed(KOHYA, words.replace("clip_l", "clip_g")))


def test_comfyuis_names_tell_the_base(path: Path) -> None:
    name = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    tensors = {key.replace(KOHYA, name): tensor for key, tensor in kohya_pair(ins=768).items()}
    assert read_info(read_header(save(path, tensors))).base == "Stable Diffusion 1.x"


@pytest.mark.parametrize("prefix", ["", "text_model_"])
def test_text_encoders_with_and_without_their_prefix(path: Path, prefix: str) -> None:
    name = f"lora_te_{prefix}encoder_layers_0_self_attn_q_proj"
    assert set(read(path, renamed(KOHYA, name)).sites) == {
        "text_encoder.encoder.layers.0.self_attn.q_proj"
    }


def test_model_names_with_the_prefix(path: Path) -> None:
    names = ModuleNames(
        model="sdxl",
        shapes={"text_encoder_2": {"text_model.encoder.layers.0.self_attn.q_proj": (32, 32)}},
    )
    save(path, renamed(KOHYA, TEXT.replace("lora_te_", "lora_te2_")))
    assert set(read_expert(path, names).sites) == {
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"
    }


def test_linear_factors_fit_a_pointwise_convolution_and_back(path: Path) -> None:
    conv = "lora_unet_down_blocks_0_attentions_0_proj_in"
    assert read(path, renamed(KOHYA, conv)).sites[
        "unet.down_blocks.0.attentions.0.proj_in"
    ].dense().shape == (32, 32, 1, 1)
    pointwise = {n: t[:, :, None, None] if t.ndim else t for n, t in kohya_pair().items()}
    assert read(path, pointwise).sites[ATTENTION].dense().shape == (32, 32)


def test_what_belongs_to_no_module_is_reported(path: Path) -> None:
    stranger = renamed("attn2_to_k", "attn9_to_k")
    others = {"some.weight": torch.ones(2), TEXT + ".alpha": torch.tensor(1.0)}
    expert = read(path, kohya_pair() | stranger | others)
    assert set(expert.sites) == {ATTENTION}
    assert set(expert.unmatched) == set(stranger) | set(others)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{KOHYA}.oft_diag", "old OFT"),
        (f"{KOHYA}.bias_indices", "sparse remainder"),
        ("base_model.model.mid_block.to_q.oft_r", r"old OFT \(PEFT before 0.14\)"),
        ("transformer.single_blocks.0.attn.to_q.lora_A.weight", "transformer model"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "transformer model"),
        ("diffusion_model.layers.0.attention.qkv.lora_A.weight", "transformer model"),
        ("model.diffusion_model.input_blocks.0.0.weight", "whole model"),
    ],
)
def test_other_kinds_are_refused_by_name(path: Path, key: str, kind: str) -> None:
    """Also beside keys that could be read: dropping any of them gives a wrong picture."""
    with pytest.raises(ComposerError, match=kind) as error:
        read(path, kohya_pair() | {key: torch.ones(2, 2)})
    assert key in str(error.value)


def test_embeddings_inside_a_lora_are_named(path: Path) -> None:
    """They are another kind of file, put inside by lora_diffusion and others; the LoRA is read."""
    inside = {"<s1>": torch.ones(32), "bundle_emb.hat.string_to_param.*": torch.ones(2, 32)}
    expert = read(path, kohya_pair() | inside)
    assert (expert.info.embeddings, expert.unmatched) == (("<s1>", "hat"), ())
    with pytest.raises(ComposerError, match=r"textual inversion embedding \('<s1>'\) and no LoRA"):
        read(path, inside)


PREFIX = ATTENTION.removeprefix("unet.")


@pytest.mark.parametrize(
    "name",
    [
        f"unet.base_model.model.{PREFIX}.lora_A",
        f"base_model.model.unet.{PREFIX}.lora_A",
        f"{KOHYA}.lora_A",
        f"{KOHYA}.lora_A.default",
        f"unet.{PREFIX}.lora_down",
        f"lycoris_{KOHYA[10:]}.lora_down",
    ],
)
def test_prefixes_of_one_program_with_endings_of_another(path: Path, name: str) -> None:
    path.with_name("adapter_config.json").write_text('{"lora_alpha": 6}')
    other = name.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
    expert = read(path, {f"{name}.weight": torch.ones(2, 32), f"{other}.weight": torch.ones(32, 2)})
    assert (set(expert.sites), expert.unmatched) == ({ATTENTION}, ())
    assert expert.sites[ATTENTION].scale == (3 if "base_model" in name else 1)


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(2, 2) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(2, 2), nn.Dropout()])


class GEGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 4)


class Block(nn.Module):
    """A transformer block as diffusers of 2022 registered its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = CrossAttention()
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([GEGLU(), nn.Dropout(), nn.Linear(2, 2)])
        self.attn2 = CrossAttention()


def tree(sizes: list[list[int]]) -> nn.ModuleList:
    """Blocks, the attentions in each, and the transformer blocks in each of these."""
    blocks = nn.ModuleList()
    for attentions in sizes:
        block = nn.Module()
        block.attentions = nn.ModuleList()
        for count in attentions:
            attention = nn.Module()
            attention.transformer_blocks = nn.ModuleList(Block() for _ in range(count))
            block.attentions.append(attention)
        blocks.append(block)
    return blocks


def test_the_numbers_of_lora_diffusion(path: Path) -> None:
    """The oracle is its own walk: ancestors by class, and below each the Linear modules in the
    order of `named_modules`, in a U-Net that registers the mid block last, as those of 2022."""
    unet = nn.Module()
    unet.down_blocks = tree([[1, 2]] * 11)  # ten and more, so that names sort otherwise
    unet.up_blocks = tree([[], [1], [1, 1]])
    (unet.mid_block,) = tree([[2]])
    called = {module: name for name, module in unet.named_modules()}
    order = [
        called[module]
        for ancestor in unet.modules()
        if type(ancestor).__name__ in ("CrossAttention", "Attention", "GEGLU")
        for module in ancestor.modules()
        if isinstance(module, nn.Linear)
    ]
    names = ModuleNames.of({"unet": unet}, model="of 2022")
    assert [names.site("unet", f":{n}") for n in range(len(order))] == [f"unet.{n}" for n in order]
    assert names.site("unet", f":{len(order)}") is None
    pair = {"unet:5:down": torch.ones(1, 2), "unet:5:up": torch.ones(2, 1)}
    expert = read_expert(save(path, pair, unet='["CrossAttention", "GEGLU"]'), names)
    assert set(expert.sites) == {f"unet.{order[5]}"}
    with pytest.raises(ComposerError, match=r"counts modules below .*ResnetBlock2D"):
        read_expert(save(path, pair, unet='["ResnetBlock2D", "GEGLU"]'), names)


def test_a_share_of_the_file_is_at_work(path: Path) -> None:
    stranger = renamed("attn2_to_k", "attn9_to_k")
    expert = read(path, kohya_pair() | stranger | {"some.weight": torch.ones(2)})
    assert (expert.modules, expert.share) == (2, 0.5)
    assert SMALL.share(expert.info.modules) == 0.5
    with pytest.raises(ComposerError, match=r"only 1 of the 2 modules.*attn9.*--partial"):
        read_expert(path, SMALL)


NORM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1"


@pytest.mark.parametrize("slots", [("w_norm", "b_norm"), ("diff", "diff_b")])
def test_trained_norms_are_left_out_if_a_user_says_so(path: Path, slots: tuple[str, str]) -> None:
    """As LyCORIS writes them, and as kohya's and ComfyUI's whole differences."""
    norm = {f"{NORM}.{slot}": torch.ones(32) for slot in slots}
    expert = read(path, kohya_pair() | norm)
    assert (set(expert.sites), set(expert.unmatched)) == ({ATTENTION}, set(norm))
    assert expert.share == SMALL.share(expert.info.modules) == 0.5
    with pytest.raises(ComposerError, match=rf"changes norms.*{NORM}.*train_norm.*--partial"):
        read_expert(path, SMALL)


def test_norms_alone_and_norms_for_a_layer(path: Path) -> None:
    with pytest.raises(ComposerError, match=r"changes norms.*`train_norm` off\)\.$"):
        read(path, {f"{NORM}.w_norm": torch.ones(32)})
    with pytest.raises(ComposerError, match="LoRA and norms at once"):
        read(path, kohya_pair() | {f"{KOHYA}.w_norm": torch.ones(32)})
    with pytest.raises(ComposerError, match=f"norm for {ATTENTION}, which is none"):
        read(path, {f"{KOHYA}.w_norm": torch.ones(32)})
    assert own_names(path).shapes == {}


def test_a_file_with_15_MB_of_tags(path: Path) -> None:
    """Trainers write the count of every tag and folder into the header."""
    tags = {
        f"10_{folder}": {f"{'long ' * 30}tag {n}": n for n in range(3000)} for folder in range(32)
    }
    text = json.dumps(tags)
    assert len(text) > 15e6
    expert = read_expert(save(path, kohya_pair(), ss_tag_frequency=text), SMALL)
    assert set(expert.sites) == {ATTENTION}
    assert expert.info.tags[0].endswith("tag 2999")


def test_no_lora_at_all(path: Path) -> None:
    with pytest.raises(ComposerError, match=r"holds no LoRA in a naming.*first tensors: 'some\.w"):
        read(path, {"some.weight": torch.ones(2)})
    with pytest.raises(ComposerError, match="first tensors: none"):
        read_expert(raw_file(path, {}), SMALL)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("slot", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_nan_is_refused_with_the_tensor_named(path: Path, number: float, slot: str) -> None:
    tensors = kohya_pair()
    tensors[f"{KOHYA}.{slot}"].view(-1)[0] = number
    with pytest.raises(ComposerError, match=rf"NaN or infinite.*{slot}"):
        read(path, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_up.weight": None}, "has no up factor"),
        ({"lora_down.weight": None, "lora_up.weight": torch.ones(32, 2)}, "has no down factor"),
        ({"lora_up.weight": torch.ones(32, 3)}, "do not fit each other"),
        ({"lora_up.weight": torch.ones(32, 2, 3, 3)}, "no known shape"),
        ({"lora_down.weight": torch.ones(64)}, "no known shape"),
        ({"lora_down.weight": torch.ones(0, 32)}, "do not fit each other"),
        ({"lora_down.weight": torch.ones(2, 32, dtype=torch.int8)}, "I8; save it as"),
        ({"alpha": torch.tensor(0.0)}, "alpha 0 for rank 2"),
        ({"alpha": torch.tensor(1e9)}, "alpha 1e\\+09 for rank 2"),
        ({"alpha": torch.ones(2)}, "not one number"),
        ({"lora_up.weight": torch.full((32, 2), 1e38)}, "change a weight by up to 2e.38"),
        ({"lora_down.weight": torch.full((2, 32), -1e9)}, "its training went wrong"),
    ],
)
def test_damaged_factors(path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {**kohya_pair(), **{f"{KOHYA}.{slot}": tensor for slot, tensor in change.items()}}
    with pytest.raises(ComposerError, match=message):
        read(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_one_module_in_two_spellings(path: Path) -> None:
    again = renamed(KOHYA, "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k")
    with pytest.raises(ComposerError, match=f"changes {ATTENTION} twice"):
        read(path, kohya_pair() | again)


@pytest.mark.parametrize(
    ("width", "family"),
    [
        (768, "Stable Diffusion 1.x"),
        (1024, "Stable Diffusion 2.x"),
        (2048, "SDXL"),
        (128, "text width 128"),
    ],
)
def test_a_lora_for_another_model(path: Path, width: int, family: str) -> None:
    with pytest.raises(ComposerError) as error:
        read(path, kohya_pair(ins=width))
    message = str(error.value)
    assert f"made for {family}" in message or f"made for a model with {family}" in message
    assert "'small' (a model with text width 32)" in message
    assert f"{ATTENTION} is 32×{width} in the LoRA and 32×32 in the model" in message


def test_a_lora_of_which_nothing_is_in_the_model(path: Path) -> None:
    with pytest.raises(ComposerError, match=r"made for SDXL.*none of its modules"):
        read(path, renamed(KOHYA, "lora_te2_text_model_encoder_layers_31_mlp_fc1"))


def test_names_of_no_module_though_the_shapes_fit(path: Path) -> None:
    """Saying that it is made for another model would be wrong: the base is the model's own."""
    names = ModuleNames(model="small", shapes={"unet": {"other.attn2.to_k": (32, 32)}})
    save(path, kohya_pair())
    with pytest.raises(ComposerError) as error:
        read_expert(path, names)
    message = str(error.value)
    assert "shapes are those of a model with text width 32" in message
    assert f"'{KOHYA}." in message and "made for" not in message


NAMES = ("down_blocks.0.attn2.to_k", "mid.to_q", "to_q", "a" * 300, "x.aab", "layers.12.q_proj", "")


@pytest.mark.parametrize(
    "pattern",
    [
        "to_q", "attn2.to_k", ".*to_[qk]", "^to_q$", "^mid", r"layers\.\d+\.(q|k)_proj", "a+b?",
        "(?:aa|b){1,2}", "a{2}b", r"\w+", "[^.]*", "x|to_.", "", "(a|b)*", r"[\w.]+_k", "a*?b",
    ],
)  # fmt: skip
def test_patterns_mean_what_they_mean_to_peft(pattern: str) -> None:
    matches = compile_pattern(pattern)
    for name in NAMES:
        assert matches(name) == (re.match(rf"(.*\.)?({pattern})$", name) is not None), name


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)+c", "((a*)*)*b", "(.*a){9}b", "(a?){50}b"])
def test_patterns_take_bounded_time(pattern: str) -> None:
    """Python's own search would take years over them."""
    try:
        assert not compile_pattern(pattern)("a" * 300)
    except ValueError as error:
        assert "takes too long" in str(error)


@pytest.mark.parametrize(
    "pattern", ["(", ")", "[", "*a", "a**", "\\", r"\b", "(?=a)", "a" * 301 + "+"]
)
def test_patterns_that_are_not_read(pattern: str) -> None:
    with pytest.raises(ValueError):
        compile_pattern(pattern)


class TestPeftConfig:
    def tensors(self) -> dict[str, torch.Tensor]:
        name = f"base_model.model.{ATTENTION.removeprefix('unet.')}"
        return {
            f"{name}.lora_A.weight": torch.ones(2, 32),
            f"{name}.lora_B.weight": torch.ones(32, 2),
        }

    def scale(self, path: Path, config: object) -> float:
        path.with_name("adapter_config.json").write_text(json.dumps(config))
        return read(path, self.tensors()).sites[ATTENTION].scale

    def test_alpha(self, path: Path) -> None:
        assert self.scale(path, {"peft_type": "LORA", "lora_alpha": 8}) == 4
        assert self.scale(path, {"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 1}}) == 0.5

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ([], "does not lie beside it or cannot be read"),
            ({"peft_type": "VERA"}, "PEFT type is VERA"),
            ({"lora_alpha": "many"}, r"'many' of down_blocks\.0.* is no number"),
            ({"lora_alpha": 8, "alpha_pattern": {r"(a)\1": 1}}, "an escape that is not read"),
            ({"lora_alpha": 8, "alpha_pattern": {"a" * 301 + "+": 1}}, "longer than 300"),
            ({"lora_alpha": 8, "alpha_pattern": dict.fromkeys(map(str, range(2001)))}, "over 2000"),
            ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": "big"}}, "alpha 'big' of"),
            ({"lora_alpha": 8, "alpha_pattern": [1]}, "is no table"),
            ({"init_lora_weights": "corda"}, "began as 'corda'"),
            ({"init_lora_weights": "loftq"}, "began as 'loftq'"),
        ],
    )
    def test_refused(self, path: Path, config: object, message: str) -> None:
        with pytest.raises(ComposerError, match=message):
            self.scale(path, config)

    def test_missing(self, path: Path) -> None:
        with pytest.raises(ComposerError, match=r"adapter_config\.json.*does not lie beside"):
            read(path, self.tensors())
