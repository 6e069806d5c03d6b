"""Pictures of other programs bring back what can be done here, and a note names the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from composer.diffusion.editing import texts_at_steps
from composer.diffusion.emphasis import parse_emphasis
from composer.diffusion.other_programs import from_texts
from composer.diffusion.parameters import from_parameters
from composer.diffusion.png import read_png
from composer.diffusion.record import PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError

SETTINGS = "Steps: 8, Sampler: Euler, CFG scale: 3, Seed: 5, Size: 64x64"
ASKED = Request(prompt="a fox", steps=8, sampler="Euler", cfg_scale=3, seed=5, width=64, height=64)


def a1111(more: str, prompt: str = "a fox") -> PictureRecord:
    return from_parameters(f"{prompt}\n{SETTINGS}, {more}")


def weights(record: PictureRecord) -> dict[str, tuple[float, float, str]]:
    return {lora.name: (lora.unet, lora.text_encoder, lora.tensor_hash) for lora in record.loras}


def test_one_note_names_every_key_that_is_not_taken_over() -> None:
    read = a1111(
        "Denoising strength: 0.4, Hires upscale: 2, Hires steps: 8, Hires resize: 5, "
        "Variation seed: 3, "
        'Variation seed strength: 0.5, ENSD: 31337, RNG: NV, TI hashes: "bad: 123456789012", '
        'Hashes: {"embed:Worse": "0987654321"}, Emphasis: No norm, Some Day: x'
    )
    assert read.request == replace(ASKED, strength=0.4, hires=2)
    (note,) = read.notes
    for key in (
        "Hires resize: 5", "Variation seed: 3",
        "Variation seed strength", "ENSD: 31337", "RNG: NV",
        "Emphasis: No norm", "Some Day: x",
    ):  # fmt: skip
        assert key in note
    assert read.embeddings == {"bad": "123456789012", "Worse": "0987654321"}


@pytest.mark.parametrize(
    ("more", "strength", "hires", "note"),
    [
        ("Denoising strength: 0.4", 0.4, 1, "began from another one, which is not in it"),
        ("Denoising strength: 0.4, Hires upscale: 1.5, Hires upscaler: Lanczos", 0.4, 1.5, ""),
        ("Hires upscale: 2, Hires steps: 3", 0.7, 2, "second pass had 3 steps"),
        ("Hires upscale: 2, Hires upscaler: Latent", 0.7, 2, "by 'Latent'; here it is by Lanczos"),
        ("Hires upscale: 200", 0.7, 1, "1.0 is used instead"),
    ],
)
def test_second_passes_and_start_pictures(
    more: str, strength: float, hires: float, note: str
) -> None:
    read = a1111(more)
    assert (read.request.strength, read.request.hires) == (strength, hires)
    assert len(read.notes) == bool(note) and note in "".join(read.notes)


@pytest.mark.parametrize(
    "more", ["Version: v1.10.1, RNG: CPU", "Batch size: 4, Batch pos: 1, User: ann", "VAE: None"]
)
def test_what_changes_nothing_is_not_noted(more: str) -> None:
    assert a1111(more).notes == ()


def test_lines_behind_the_settings() -> None:
    """Of sd-dynamic-prompts."""
    read = from_parameters(f"a fox\n{SETTINGS}\nTemplate: a {{fox|dog}}\nNegative Template: x, y")
    (note,) = read.notes
    assert read.request == ASKED and "Template: a {fox|dog}" in note
    with pytest.raises(ComposerError, match="holds no settings"):
        from_parameters("a\n" * 9)


def test_ddim_of_invokeai_is_ddim_and_comfyuis_is_euler() -> None:
    read = from_texts({"invokeai_metadata": json.dumps({"scheduler": "ddim", "steps": 8})})
    assert read is not None and read.request.sampler == "DDIM"
    read = comfy(**{"3": {**GRAPH["3"], "inputs": GRAPH["3"]["inputs"] | {"scheduler": "beta"}}})
    assert read.request.schedule == "Automatic" and "ComfyUI's beta" in read.notes[0]


def test_a_note_stays_short() -> None:
    read = a1111(", ".join(f"Key {i}: {'x' * 500}" for i in range(200)))
    (note,) = read.notes
    assert "Key 39: xx" in note and "and 160 more" in note and len(note) < 3000


@pytest.mark.parametrize("seed", [2**32, 2**53 + 1, 2**64 - 1])
def test_long_seeds(seed: int) -> None:
    read = from_parameters(f"a fox\nSteps: 8, Sampler: Euler, Seed: {seed}")
    assert (read.request.seed, read.notes) == (seed, ())


@pytest.mark.parametrize(
    ("prompt", "more", "found"),
    [
        ("a fox", f'Lora hashes: "neon: {"a" * 12}", Lora weights: "neon: 0.8"',
         {"neon": (0.8, 0.8, "a" * 12)}),
        ("a fox", f'Lora hashes: "neon: {"a" * 12}", loraweights: "neon: 0.33"',
         {"neon": (0.33, 0.33, "a" * 12)}),
        ("a fox <lora:neon:0.5>", f'Hashes: {{"LORA:neon": "{"A" * 10}", "model": "{"b" * 10}"}}',
         {"neon": (0.5, 0.5, "a" * 10)}),
        ("a fox", f'Lora_0 Model name: neon.safetensors, Lora_0 Model hash: {"a" * 10}, '
         "Lora_0 Strength model: 0.8, Lora_0 Strength clip: 0.4", {"neon": (0.8, 0.4, "a" * 10)}),
        ("a fox", f"AddNet Enabled: True, AddNet Module 1: LoRA, AddNet Model 1: neon({'a' * 12}), "
         "AddNet Weight A 1: 0.8, AddNet Weight B 1: 0.4", {"neon": (0.8, 0.4, "a" * 12)}),
        ("a fox <lyco:neon:0.5> <lora:neon:0.25>", "Clip skip: 1", {"neon": (0.75, 0.75, "")}),
    ],
)  # fmt: skip
def test_loras_named_outside_the_prompt_or_by_other_tags(
    prompt: str, more: str, found: dict[str, Any]
) -> None:
    read = a1111(more, prompt)
    assert (read.request, weights(read), read.notes) == (ASKED, found, ())


def test_a_lora_without_a_weight_is_said() -> None:
    read = a1111(f'Lora hashes: "neon: {"a" * 12}"')
    assert weights(read) == {"neon": (1, 1, "a" * 12)}
    assert "does not say the weight of the LoRA 'neon'" in read.notes[0]
    read = a1111("Clip skip: 1", "a fox <lora:neon:50>")
    assert weights(read) == {"neon": (10, 10, "")} and "beyond 10" in read.notes[0]


def test_loras_that_civitai_numbers_are_named_by_their_numbers() -> None:
    read = a1111(
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1},'
        '{"type":"lora","weight":0.4,"modelVersionId":222},'
        '{"modelName":"Glow","modelVersionName":"v2","air":"urn:air:sd1:lora:civitai:8@9"},'
        '{"type":"embed","modelVersionId":333}], Civitai metadata: {}'
    )
    by_number, rest = read.notes
    assert "2 LoRAs of" in by_number and "lora (222, weight 0.4), Glow v2 (8@9)" in by_number
    assert "embed (333)" in rest and read.loras == ()


def test_limits_and_block_weights_of_tags() -> None:
    blocks = "0.5" + ",1,0" * 8
    read = a1111("Clip skip: 1", f"a <lora:neon:0.8:stop=4> <lora:zibo:1:lbw={blocks}> fox")
    assert read.request == ASKED and read.notes == ()
    assert weights(read) == {"neon": (0.8, 0.8, ""), "zibo": (1, 0.5, "")}
    assert read.fusion["steps"] == {"neon": [0.0, 0.5]}
    assert len(read.fusion["pins"]) == 8 + 1  # one block ends with a sampler
    assert read.fusion["pins"][0] == "?down_blocks.0.[ar]*.1: neon=0.8, zibo=0"
    read = a1111("Clip skip: 1", "a <lora:neon:0.8:start=30> <lora:zibo:1:lbw=5> <hypernet:x> fox")
    assert read.fusion == {"name": "weighted"} and set(weights(read)) == {"neon", "zibo"}
    for said in ("no step at all", "block weights '5'", "hypernetwork"):
        assert sum(said in note for note in read.notes) == 1


GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 2**60, "steps": 8, "cfg": 3, "sampler_name": "dpmpp_2m", "scheduler": "karras",
        "denoise": 1, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0],
        "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "anything.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 96, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["20", 0], "clip": ["12", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["12", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "styles\\neon.safetensors", "strength_model": 0.8, "strength_clip": 0.4,
        "model": ["4", 0], "clip": ["4", 1]}},
    "11": {"class_type": "LoraLoaderModelOnly", "inputs": {
        "lora_name": "zibo.safetensors", "strength_model": 0.5, "model": ["10", 0]}},
    "12": {"class_type": "CLIPSetLastLayer", "inputs": {
        "stop_at_clip_layer": -2, "clip": ["10", 1]}},
    "20": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
}  # fmt: skip


def comfy(**nodes: Any) -> PictureRecord:
    read = from_texts({"prompt": json.dumps(GRAPH | nodes), "workflow": "{}"})
    assert read is not None
    return read


def test_square_brackets_are_letters_to_comfyui() -> None:
    text = "[fox|owl] [ink:3], (embedding:bad:1.2)"
    read = comfy(**{"7": {"class_type": "CLIPTextEncode", "inputs": {"text": text}}})
    negative = read.request.negative_prompt
    assert negative == r"\[fox|owl\] \[ink:3\], (embedding:bad:1.2)"
    assert texts_at_steps(negative, 5) == [negative] * 5
    assert "".join(part.text for part in parse_emphasis(negative)).startswith("[fox|owl] [ink:3]")


def test_a_comfyui_graph() -> None:
    read = comfy()
    assert read.request == Request(
        prompt="a fox", negative_prompt="blurry", seed=2**60, steps=8, cfg_scale=3, clip_skip=2,
        sampler="DPM++ 2M", schedule="Karras", width=64, height=96,
    )  # fmt: skip
    assert weights(read) == {"styles/neon": (0.8, 0.4, ""), "zibo": (0.5, 0.5, "")}
    assert (read.model_name, read.notes) == ("anything", ())


def test_a_second_pass_and_strange_nodes_of_a_graph_are_named() -> None:
    second = {**GRAPH["3"]["inputs"], "latent_image": ["31", 0], "steps": 4, "denoise": 0.5}
    nodes = {
        "30": {"class_type": "KSampler", "inputs": second},
        "31": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 128}},
        "40": {"class_type": "ControlNetApplyAdvanced", "inputs": {
            "positive": ["6", 0], "negative": ["7", 0], "strength": 1}},
    }  # fmt: skip
    first = {**GRAPH["3"]["inputs"], "positive": ["40", 0], "negative": ["40", 1]}
    read = comfy(**nodes, **{"3": {"class_type": "KSampler", "inputs": first}})
    assert (read.request.steps, read.request.width) == (8, 64)
    assert (read.request.prompt, read.request.negative_prompt) == ("a fox", "blurry")
    (note,) = read.notes
    assert all(f"node {kind}" in note for kind in ("KSampler", "LatentUpscale", "ControlNetApply"))


def test_a_graph_of_samplers_in_parts_and_stacks_of_loras() -> None:
    stack = {
        "lora_1": {"on": True, "lora": "neon.safetensors", "strength": 0.8},
        "lora_2": {"on": False, "lora": "zibo.safetensors", "strength": 1},
        "switch_1": "On", "lora_name_1": "glow", "model_weight_1": 0.5, "clip_weight_1": 0.25,
        "switch_2": "Off", "lora_name_2": "dim", "model_weight_2": 0.5, "clip_weight_2": 0.25,
        "lora_name_3": "None", "model": ["4", 0],
    }  # fmt: skip
    graph = {key: GRAPH[key] for key in ("4", "5", "6", "12", "20")} | {
        "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["2", 0], "guider": ["3", 0], "sampler": ["13", 0], "sigmas": ["14", 0],
            "latent_image": ["5", 0]}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "3": {"class_type": "BasicGuider", "inputs": {
            "model": ["15", 0], "conditioning": ["6", 0]}},
        "10": {"class_type": "Reroute", "inputs": {"": ["4", 0]}},
        "13": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "ddim"}},
        "14": {"class_type": "BasicScheduler", "inputs": {
            "scheduler": "sgm_uniform", "steps": 8, "denoise": 1.0, "model": ["15", 0]}},
        "15": {"class_type": "Power Lora Loader (rgthree)", "inputs": stack},
    }  # fmt: skip
    read = from_texts({"prompt": json.dumps(graph)})
    assert read is not None and read.notes == ()
    request = read.request
    assert (request.prompt, request.negative_prompt, request.seed) == ("a fox", "", 7)
    assert (request.sampler, request.schedule) == ("Euler", "SGM Uniform")
    assert weights(read) == {"neon": (0.8, 0.8, ""), "glow": (0.5, 0.25, "")}


def test_the_settings_of_invokeai() -> None:
    values = {
        "generation_mode": "txt2img", "positive_prompt": "a fox", "negative_prompt": None,
        "width": 64, "height": 64, "seed": 5, "rand_device": "cpu", "cfg_scale": 3, "steps": 8,
        "scheduler": "dpmpp_2m_k", "clip_skip": 1, "app_version": "5.0", "controlnets": [],
        "hrf_enabled": False, "vae": {"name": "soft"}, "strength": 0.5,
        "model": {"name": "anything", "hash": "blake3:" + "e" * 64},
        "loras": [{"model": {"name": "neon", "hash": "blake3:" + "f" * 64}, "weight": 0.8},
                  {"lora": {"model_name": "zibo"}, "weight": 0.5}],
    }  # fmt: skip
    read = from_texts({"invokeai_metadata": json.dumps(values)})
    assert read is not None
    request = read.request
    assert (request.sampler, request.schedule, request.clip_skip) == ("DPM++ 2M", "Karras", 2)
    assert (request.prompt, request.width, request.seed) == ("a fox", 64, 5)
    assert weights(read) == {"neon": (0.8, 0.8, ""), "zibo": (0.5, 0.5, "")}
    assert (read.model_name, read.model_hash) == ("anything", "")
    (note,) = read.notes
    assert read.vae_name == "soft" and "strength: 0.5" in note and "hrf" not in note


def test_the_settings_of_swarmui() -> None:
    values = {
        "sui_image_params": {
            "prompt": "a fox", "negativeprompt": "", "model": "anything.safetensors", "seed": 5,
            "steps": 8, "cfgscale": 3.0, "aspectratio": "1:1", "width": 64, "height": 64,
            "sampler": "euler_ancestral", "scheduler": "karras", "loras": ["neon", "sub/zibo"],
            "loraweights": ["0.8", "0.5"], "swarm_version": "0.9", "refinersteps": 4,
        },
        "sui_models": [{"name": "neon.safetensors", "param": "loras", "hash": "0x" + "a" * 64}],
    }  # fmt: skip
    read = from_texts({"parameters": json.dumps(values)})
    assert read is not None
    assert (read.request.sampler, read.request.schedule) == ("Euler a", "Karras")
    assert (read.request.width, read.request.height, read.request.cfg_scale) == (64, 64, 3)
    assert weights(read) == {"neon": (0.8, 0.8, "a" * 64), "sub/zibo": (0.5, 0.5, "")}
    (note,) = read.notes
    assert note.endswith("otherwise: refinersteps: 4.")


def test_the_settings_of_fooocus() -> None:
    values = {
        "prompt": "a fox", "negative_prompt": "", "full_prompt": ["a fox"], "seed": "5",
        "steps": 8, "guidance_scale": 3.0, "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras",
        "resolution": "(64, 96)", "base_model": "anything", "base_model_hash": "e" * 10,
        "loras": [["neon", 0.8, "a" * 10]], "lora_combined_1": "neon : 0.8", "sharpness": 2.0,
        "styles": "['Fooocus V2']", "version": "Fooocus v2.5", "metadata_scheme": "fooocus",
    }  # fmt: skip
    read = from_texts({"parameters": json.dumps(values), "fooocus_scheme": "fooocus"})
    assert read is not None
    assert (read.request.sampler, read.request.schedule) == ("DPM++ 2M SDE", "Karras")
    assert (read.request.width, read.request.height, read.request.seed) == (64, 96, 5)
    assert weights(read) == {"neon": (0.8, 0.8, "a" * 10)}
    assert (read.model_name, read.model_hash) == ("anything", "e" * 10)
    (note,) = read.notes
    assert note.endswith("sharpness: 2.0, styles: ['Fooocus V2'].")


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"prompt": "{"}, "'prompt' cannot be read"),
        ({"prompt": "{}"}, "no node that samples"),
        ({"workflow": "{}"}, "not the graph that ran"),
        ({"invokeai_metadata": "[]"}, "not a JSON object"),
        ({"parameters": "{1}"}, "'parameters' cannot be read"),
    ],
)
def test_damaged_texts_are_told(texts: dict[str, str], told: str) -> None:
    with pytest.raises(ComposerError, match=told):
        from_texts(texts)
    assert from_texts({}) is None


STRANGE: tuple[Any, ...] = (None, 3, "x", [], ["3", 0], [["3"]], {}, {"lora": 3}, True)


@pytest.mark.parametrize("value", STRANGE)
def test_values_of_another_kind_do_no_harm(value: Any) -> None:
    """Whatever stands somewhere, what can be read is read, or an error says what is wrong."""
    for key, node in GRAPH.items():
        comfy(**({key: value} if key != "3" else {}))
        for name in node["inputs"]:
            comfy(**{key: {**node, "inputs": {**node["inputs"], name: value}}})
    given = ("loras", "model", "width", "seed", "prompt", "loraweights", "clip_skip", "resolution")
    for name in given:
        for texts in (
            {"invokeai_metadata": json.dumps({name: value})},
            {"parameters": json.dumps({"sui_image_params": {name: value}, "sui_models": value})},
            {"parameters": json.dumps({name: value})},
        ):
            assert from_texts(texts) is not None


def user_comment(text: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = text
    return exif


TEXT = f"a fox\n{SETTINGS}"


@pytest.mark.parametrize("ending", ["jpg", "webp", "png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"ASCII\0\0\0" + TEXT.encode(),
        b"\0" * 8 + TEXT.encode(),
    ],
)
def test_exif_of_jpeg_and_webp(tmp_path: Path, ending: str, comment: bytes) -> None:
    path = tmp_path / f"theirs.{ending}"
    Image.new("RGB", (8, 8)).save(path, exif=user_comment(comment).tobytes())
    assert read_png(path).request == ASKED


def test_a_graph_in_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "workflow:{}", "prompt:" + json.dumps(GRAPH)
    Image.new("RGB", (8, 8)).save(tmp_path / "comfy.webp", exif=exif)
    assert read_png(tmp_path / "comfy.webp").request.seed == 2**60
    civitai = user_comment(b"UNICODE\0" + json.dumps(GRAPH).encode("utf-16-be"))
    Image.new("RGB", (8, 8)).save(tmp_path / "civitai.jpg", exif=civitai)
    assert read_png(tmp_path / "civitai.jpg").request.seed == 2**60


def test_texts_behind_the_pixels(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", TEXT, zip=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "before.png", pnginfo=texts)
    data = (tmp_path / "before.png").read_bytes()
    begin = data.index(b"tEXtparameters") - 4
    length = 12 + int.from_bytes(data[begin : begin + 4], "big")
    chunk, without = data[begin : begin + length], data[:begin] + data[begin + length :]
    end = without.rindex(b"IEND") - 4
    (tmp_path / "after.png").write_bytes(without[:end] + chunk + without[end:])
    assert read_png(tmp_path / "after.png").request == ASKED


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_damaged_exif_is_told(tmp_path: Path, length: int) -> None:
    whole = user_comment(b"ASCII\0\0\0" + TEXT.encode()).tobytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "cut.jpg", exif=whole[:length])
    with pytest.raises(ComposerError, match=r"cut\.jpg"):
        read_png(tmp_path / "cut.jpg")
