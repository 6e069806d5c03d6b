"""Published protocols end to end on stand-ins: their sets, that all is asked before any work, that
they go on after a stop, and what their tables say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_clip import write_clip
from tiny_loras import write_lora
from tiny_vision import write_vision_model
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from benchmarks.compos import composlora, mole
from benchmarks.compos.composlora import WEIGHT, sets_of, subsets
from benchmarks.shared import protocols, vision_judge
from benchmarks.shared.protocols import ALL, GAINS, Composition, Scored, rows_of
from benchmarks.shared.results import in_table, number, read_results
from composer.errors import ComposerError
from composer.fusions.gate_file import read_gates
from composer.studio import SavedPicture
from composer.studio.grid import Filled, Painted, Scores
from composer.training.gates import sampling

SMALL = ["--steps", "1", "--size", "16x16", "--count", "1"]


def write_subset(folder: Path, subset: str) -> Path:
    for seed, one in enumerate(subsets()[subset].loras):
        write_lora(folder / one.file, seed=seed)
    return folder


def pictures(folder: Path, *names: str) -> Path:
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (12, 12), (60 * place, 90, 200)).save(folder / name / "a.png")
    return folder


def test_composlora_has_the_published_sets_and_prompts() -> None:
    known = subsets()
    counted: Counter[int] = Counter()
    for subset in known.values():
        every = sets_of(subset.loras)
        assert len({frozenset(one.id for one in some) for some in every}) == len(every) == 240
        for some in every:
            kinds = [one.kind for one in some]
            assert kinds[0] == "character" and len(set(kinds)) == len(kinds)
        assert [len(some) for some in every[:8]] == [2, 3, 4, 5] * 2
        counted += Counter(len(some) for some in every)
    assert counted == {2: 48, 3: 144, 4: 192, 5: 96}  # 480, as published
    pair = [one for one in known["reality"].loras if one.id in ("character_2", "clothing_2")]
    assert composlora.prompt_for(pair, known["reality"].request.prompt) == (
        "RAW photo, subject, 8k uhd, dslr, high quality, Fujifilm XT3, half-length portrait from "
        "knees up, scarlett, short red hair, blue eyes, school uniform, white shirt, red tie, blue "
        "pleated microskirt"
    )
    anime, reality = (known[name].request for name in ("anime", "reality"))
    assert (anime.width, anime.height, anime.steps, anime.cfg_scale) == (512, 512, 200, 10)
    assert (reality.width, reality.height, reality.steps, reality.cfg_scale) == (768, 1024, 100, 7)


def test_composlora_runs_goes_on_and_says_what_it_measured(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras, out = write_subset(tmp_path / "loras", "reality"), tmp_path / "out"
    clip = write_clip(tmp_path / "clip", tiny_sd)
    seen = pictures(tmp_path / "seen", *(one.id for one in subsets()["reality"].loras))
    run = [
        "--subset", "reality", "--model", str(tiny_sd), "--loras", str(loras), "--out", str(out),
        "--sets", "2", "--ways", "bare,alone,weighted,ties:density=0.3,rank=2,k-lora",
        *SMALL, "--clip", str(clip), "--references", str(seen), "--device", "cpu",
        "--judge", str(write_vision_model(tmp_path / "judge")),
    ]  # fmt: skip
    monkeypatch.setattr(vision_judge, "WORDS", 2)
    points = (
        "{'first': {'composition': 7, 'quality': 8}, 'second': {'composition': 7, 'quality': 6}}"
    )
    read = vision_judge.read_points
    monkeypatch.setattr(vision_judge, "read_points", lambda _: read(points.replace("'", '"')))
    composlora.main(run)
    results = read_results(out / "compos_composlora.json")
    rows = {str(row["fusion"]): row for row in in_table(results.rows, ALL)}
    ways = ["No LoRAs", "Each LoRA alone", "Weighted sum", "TIES: density=0.3,rank=2", "K-LoRA"]
    assert list(rows) == ways
    assert [rows[way]["sets"] for way in rows] == [2, 2, 2, 2, 1]  # K-LoRA is for two
    assert (rows["Each LoRA alone"]["n"], rows["Weighted sum"]["n"]) == (2 + 3, 2)
    scores = {f"{s} (×100)" for s in ("CLIP-T", "CLIP-I", "least cropped CLIP-I", "recognised")}
    assert scores <= rows["K-LoRA"].keys() and "CLIP-I (×100)" not in rows["No LoRAs"]
    assert [row["fusion"] for row in in_table(results.rows, GAINS)] == ways[3:]
    assert len(in_table(results.rows, "2 LoRAs")) == len(ways)
    ties, k_lora = in_table(results.rows, vision_judge.TABLE)
    assert (ties["n"], k_lora["n"], ties["quality (of 10)"], ties["quality wins"]) == (2, 1, 7, 0.5)
    assert len(json.loads((out / "judged.json").read_text())) == (2 + 1) * 2
    page = (out / "compos_composlora.md").read_text()
    assert "# ComposLoRA, reality" in page and "SG161222/Realistic_Vision_V5.1_noVAE" in page
    painted = sorted(out.rglob("00*.png"))
    records = [SavedPicture(id="", path=path).record for path in painted]
    assert {r.request.seed for r in records} == {111}
    assert {row.unet for r in records if len(r.loras) > 1 for row in r.loras} == {WEIGHT}
    assert all(r.request.negative_prompt.startswith("extra heads") for r in records)
    known = json.loads((out / "loras" / "reality" / "style_1.json").read_text())
    assert known == {"activation text": "film overlay, film grain", "role": "style"}
    # stopped and begun again, nothing is painted twice
    times = [path.stat().st_mtime_ns for path in painted]
    composlora.main(run)
    again = sorted(out.rglob("00*.png"))
    assert again == painted and [path.stat().st_mtime_ns for path in again] == times


def test_composlora_asks_for_all_files_before_any_work(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = write_subset(tmp_path / "loras", "anime")
    (loras / "style_1.safetensors").unlink()
    (loras / "object_2.safetensors").unlink()
    words = ["--subset", "anime", "--model", str(tiny_sd), "--loras", str(loras)]
    words += ["--out", str(tmp_path / "out"), *SMALL]
    with pytest.raises(ComposerError) as error:
        composlora.main(words)
    told = str(error.value)
    assert "style_1.safetensors (Hand-drawn Style: Civitai's model 143532, no version" in told
    assert "object_2.safetensors (Toast: Civitai's model 26945, version 32252)" in told
    assert "character_1" not in told
    write_subset(loras, "anime")
    monkeypatch.setattr(protocols, "Studio", None)  # nothing is loaded
    clip = str(write_clip(tmp_path / "clip", tiny_sd))
    seen = pictures(tmp_path / "seen", "character_9")
    for more, words_of_it in (
        (["--ways", "median"], "There is no fusion 'median'"),
        (["--dino", clip], "cannot be used"),
        (["--references", str(seen), "--clip", clip], "is called as no LoRA"),
        (["--size", "16"], "not understood"),
    ):
        with pytest.raises(ComposerError, match=words_of_it):
            composlora.main([*words, *more])


def test_means_and_gains_are_over_sets(tmp_path: Path) -> None:
    painted = Painted(saved=SavedPicture(id="a", path=tmp_path), seconds=2.0)

    def one(loras: tuple[str, ...], title: str, seed: int, value: float) -> Scored:
        scores = Scores(likeness={"CLIP-I": dict.fromkeys(loras, value)}, unlike_bare=3.0)
        composition = Composition(name="+".join(loras), loras=loras, prompt="", ways={})
        filled = Filled(cell=0, painted=painted, scores=scores)
        return Scored(composition=composition, title=title, seed=seed, filled=filled)

    pair, three = ("a", "b"), ("a", "b", "c")
    scored = [
        *(one(pair, "Weighted sum", seed, 0.5) for seed in range(3)),
        one(three, "Weighted sum", 0, 0.1),
        *(one(pair, "TIES", seed, 0.6 + 0.1 * seed) for seed in range(3)),
        one(three, "TIES", 0, 0.3),
    ]
    rows = list(rows_of(scored))
    by = {(row["table"], row["fusion"]): row for row in rows}
    # of three pictures and one: the mean of two sets, not of four pictures
    assert by[ALL, "TIES"]["CLIP-I (×100)"] == pytest.approx(100 * (0.7 + 0.3) / 2)
    assert (by[ALL, "TIES"]["sets"], by[ALL, "TIES"]["n"]) == (2, 4)
    assert by["3 LoRAs", "TIES"]["CLIP-I (×100)"] == pytest.approx(30)
    assert by[GAINS, "TIES"]["CLIP-I (×100)"] == pytest.approx(20)
    assert not {"seconds (s)", "unlike bare (of 255)"} & by[GAINS, "TIES"].keys()
    assert by[ALL, "TIES"]["seconds (s)"] == 2 and (GAINS, "Weighted sum") not in by


def plan_of(folder: Path, **more: object) -> Path:
    sets = [{"loras": ["ada", "ink", "sea"], "prompts": ["ada in ink at sea", "sea, ink, ada"]}]
    path = folder / "plan.json"
    path.write_text(json.dumps({"sets": sets, **more}))
    return path


def test_mole_trains_gates_for_each_set_and_compares_them(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "STEPS", 2)
    monkeypatch.setattr(sampling, "PICTURES", 1)
    loras, out = tmp_path / "loras", tmp_path / "out"
    for seed, name in enumerate(("ada", "ink", "sea")):
        words = {} if name == "sea" else {"modelspec.trigger_phrase": name}
        write_lora(loras / f"{name}.safetensors", seed=seed, **words)
    clip = str(write_clip(tmp_path / "clip", tiny_sd))
    run = ["--model", str(tiny_sd), "--loras", str(loras), "--out", str(out), "--device", "cpu"]
    run += ["--clip", clip, *SMALL, "--training", "--steps 1 --batch-size 2", "--no-recognised"]
    with pytest.raises(ComposerError, match=r"sea\.safetensors names no trigger word"):
        mole.main([*run, "--plan", str(plan_of(tmp_path))])
    assert not out.exists()  # before any training
    sets = [
        {
            "loras": ["ada", "ink", "sea"],
            "prompts": ["ada in ink at sea", "sea, ink, ada"],
            "training": ["ada at sea in ink"],
        }
    ]
    plan = plan_of(tmp_path, sets=sets, alone={"ada": ["ada"], "ink": ["ink"], "sea": ["the sea"]})
    seen = pictures(tmp_path / "seen", "ada", "ink", "sea")
    run += ["--plan", str(plan), "--references", str(seen)]
    mole.main(run)
    gates = sorted((out / "gates").glob("*.safetensors"))
    settings = [read_gates(path).training["settings"] for path in gates]
    assert [(s["paper"], s["steps"], s["prompts"]) for s in settings] == [
        (False, 1, ["ada at sea in ink"]),
        (True, 1, ["ada at sea in ink"]),
    ]
    assert {s["alone"]["sea"][0] for s in settings} == {"the sea"} and settings[1]["clip"] == clip
    results = read_results(out / "compos_mole.json")
    rows = {str(row["fusion"]): row for row in in_table(results.rows, ALL)}
    ways = ["Normalised sum (NLA)", "Weighted sum", "MoLE, as published", "Learned gates"]
    assert list(rows) == ways and {(r["sets"], r["n"]) for r in rows.values()} == {(1, 2)}
    own = in_table(results.rows, mole.BY_CONCEPT)
    assert [(row["set"], row["fusion"]) for row in own] == [
        *(("ada+ink+sea", way) for way in ways), *(("mean of the sets", way) for way in ways)
    ]  # fmt: skip
    for row in own:
        concepts = [number(row, f"CLIP-I, concept {n} (×100)") for n in (1, 2, 3)]
        mean = number(rows[str(row["fusion"])], "CLIP-I (×100)")
        assert sum(concepts) / 3 == pytest.approx(mean, abs=1e-3)
        assert number(row, "CLIP-T (×100)") == rows[str(row["fusion"])]["CLIP-T (×100)"]
    assert len({number(row, "CLIP-T (×100)") for row in own[:4]}) > 2  # other ways, other pictures
    # nothing is trained again
    times = [path.stat().st_mtime_ns for path in gates]
    mole.main(run)
    assert sorted((out / "gates").glob("*.safetensors")) == gates
    assert [path.stat().st_mtime_ns for path in gates] == times


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sets": []}', '{"sets": [{"loras": "a", "prompts": ["b"]}]}',
             '{"sets": [{"loras": ["a"], "prompts": []}]}', '{"sets": [["a"]]}',
             '{"sets": [{"loras": ["a"], "prompts": ["b"]}], "alone": ["a"]}']
)  # fmt: skip
def test_a_plan_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ComposerError, match=r"plan\.json"):
        mole.read_plan(path)


def scored_pictures(folder: Path, shades: dict[tuple[str, str, int], int]) -> list[Scored]:
    """Pictures of one shade of grey each, by set, way and seed."""
    found: list[Scored] = []
    for place, ((name, title, seed), shade) in enumerate(shades.items()):
        path = folder / f"{place}.png"
        Image.new("RGB", (16, 16), (shade,) * 3).save(path)
        loras = tuple(name.split("+"))
        painted = Painted(saved=SavedPicture(id=path.name, path=path), seconds=1.0)
        found.append(
            Scored(
                composition=Composition(name=name, loras=loras, prompt="", ways={}),
                title=title,
                seed=seed,
                filled=Filled(cell=place, painted=painted, scores=Scores()),
            )
        )
    return found


def test_a_judge_is_asked_in_both_orders_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shades = {
        ("a+b", "Weighted sum", 1): 50,
        ("a+b", "TIES", 1): 60,
        ("a+b", "No LoRAs", 1): 10,
        ("a+b+c", "Weighted sum", 1): 50,
        ("a+b+c", "TIES", 1): 40,
        ("a+b+c", "TIES", 2): 30,  # the sum has no such seed
        ("a+b", "LoRA Switch", 1): 99,
    }
    scored = scored_pictures(tmp_path, shades)
    asked: list[tuple[int, int, str]] = []

    def ask(first: Image.Image, second: Image.Image, question: str) -> str:
        """Points are a tenth of the shade, and half a point more for what is shown first."""
        one, other = (image.convert("L").getpixel((0, 0)) for image in (first, second))
        assert isinstance(one, int) and isinstance(other, int)
        asked.append((one, other, question))
        if 99 in (one, other):
            return "I cannot tell."
        points = [{"composition": v / 10, "quality": 5} for v in (one + 5, other)]
        return "Well. " + json.dumps(dict(zip(("first", "second"), points, strict=True)))

    monkeypatch.setattr(vision_judge, "load_judge", lambda *_: ask)

    def run() -> tuple[list[vision_judge.Judged], int]:
        (tmp_path / "judge").mkdir(exist_ok=True)
        kept = tmp_path / "judged.json"
        return vision_judge.judged("x", scored, " and ".join, tmp_path / "judge", kept, "cpu")

    found, unread = run()
    assert unread == 1 and [(one.own[0], one.other[0]) for one in found] == [
        (pytest.approx(6.25), pytest.approx(5.25)),
        (pytest.approx(4.25), pytest.approx(5.25)),
    ]
    assert [pair[:2] for pair in asked[:2]] == [(60, 50), (50, 60)]
    assert "\na and b\n" in asked[0][2] and "\na and b and c\n" in asked[2][2]
    (row,) = vision_judge.judged_rows(found)
    assert (row["fusion"], row["sets"], row["n"]) == ("TIES", 2, 2)
    assert row["composition (of 10)"] == row["the sum's composition (of 10)"] == 5.25
    assert row["composition wins"] == row["quality wins"] == 0.5
    count = len(asked)
    assert count == 6 and run()[1] == 1 and len(asked) == count
    scored[1].filled.painted.saved.path.write_bytes(
        scored[4].filled.painted.saved.path.read_bytes()
    )  # another picture
    run()
    assert len(asked) == count + 2


def test_points_are_read_from_the_last_line_that_has_them() -> None:
    def line(*values: object) -> str:
        first, second = (
            dict(zip(("composition", "quality"), values[n:], strict=False)) for n in (0, 2)
        )
        return json.dumps({"first": first, "second": second})

    read = vision_judge.read_points
    assert read(f"{line(1, 2, 3, 4)} so:\n```json\n{line(9.5, 10, 0, 3)}\n```") == (
        (9.5, 10),
        (0, 3),
    )
    assert read(f"{line(1, 2, 3, 4)}\n{line(11, 2, 3, 4)}") == ((1, 2), (3, 4))
    for none in ("", "first", line(1, 2, 3, "x"), line(-1, 2, 3, 4), '{"first": {}, "second": {}}'):
        assert read(none) is None
    assert read('{"first": {' * 9999) is None


def test_a_judge_is_a_model_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_vision_model(tmp_path / "judge")
    seen: list[tuple[torch.Size, str]] = []
    generate = LlavaForConditionalGeneration.generate

    def counted(model: LlavaForConditionalGeneration, **given: Any) -> Any:
        text = tokenizer.decode(given["input_ids"][0])
        seen.append((given["pixel_values"].shape, text))
        return generate(model, **given)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", counted)
    monkeypatch.setattr(vision_judge, "WORDS", 6)
    ask = vision_judge.load_judge(folder, "cpu")
    images = [Image.new("RGB", (20, 12), colour) for colour in ("red", "blue")]
    answers = [ask(images[0], images[1], "which?") for _ in range(2)]
    assert answers[0] == answers[1] and isinstance(answers[0], str)
    assert len(tokenizer(answers[0], add_special_tokens=False)["input_ids"]) <= 6 * 3
    # both pictures, each in its place before the question
    assert seen[0] == (torch.Size((2, 3, 8, 8)), seen[1][1])
    assert seen[0][1].count("<image>") == 2 * 4 and "which?" in seen[0][1]
    assert ask(images[1], images[0], "which?") == ask(images[1], images[0], "which?")
    told = json.loads((folder / "config.json").read_text())
    for change, words in (({"model_type": "llama"}, "of the kind 'llama'"), (None, "no config")):
        if change:
            (folder / "config.json").write_text(json.dumps({**told, **change}))
        else:
            (folder / "config.json").unlink()
        with pytest.raises(ComposerError, match=words):
            vision_judge.check_judge(folder)
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(ComposerError, match="no weights in safetensors"):
        vision_judge.check_judge(folder)
