"""docs/methods.md: every way of fusing, from the recipes themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.shared.markdown import markdown_table
from composer.fusions import RECIPES
from composer.settings import choices_of, fields_of

HEAD = """# Ways of fusing LoRAs

All that Composer can do with several LoRAs, on the page and by `--fusion NAME`; parameters follow
a colon, `--fusion ties:density=0.3,rank=8`. `python -m benchmarks.tables` writes this page from
the recipes in `composer/fusions/`, whose docstrings have the equations; the tests compare each
with PEFT, with a whole SVD or with its definition.

Text encoders are treated alike: they take the LoRAs added up with their weights, and read the
prompt once. (Of the sums with other weights, NLA and Total strength weigh there too.)

"Passes" are those of the U-Net for each step, as many times as of one fused model; k is the
number of LoRAs. A merge is made once, when its LoRAs, weights or parameters change."""

ELSEWHERE = """## Beside a method

Weights by block (`lbw=` in a tag, or pins of units), by step (`start=`, `stop=`,
`--lora NAME=1@0:0.5`) and by depth go with the weighted sum, NLA, Total strength, trigger regions,
FreeFuse and gates. Methods that take all LoRAs as one refuse them. A part of the picture for a LoRA
(drawn on the page; `--lora NAME=1#0:0:0.5:1`, LEFT:TOP:RIGHT:BOTTOM, or `NAME=1#FILE` for where a
picture is light) goes with Drawn places alone; other methods say that they did not use it."""

PROTOCOLS = """## The published protocols

`composer compare` scores your own comparisons. With `--clip`, `--dino` and your pictures of what
each LoRA teaches, `--reference NAME=FOLDER`, its CLIP-I and DINO of a LoRA are the mean cosine with
these pictures: of the whole picture, as DreamBooth takes it, and of the best crop, for
several LoRAs in one picture. Crops are squares of 1, 3/4 and 1/2 of the shorter side, half a side
apart or less (14 of a square picture), and the one that is most like the reference counts; a style
is taken of the whole picture. W-Switch ([arXiv 2606.03792](https://arxiv.org/abs/2606.03792)) cuts
concepts out by a face detector and a segmenter instead, also with styles whole; a fixed set of
crops needs neither, and is the same for all ways. Of all LoRAs of a picture the mean and the least
are given.

```sh
composer compare "zibo fox in neon style" --lora zibo --lora neon -o side_by_side \\
    --clip openai/clip-vit-base-patch16 --dino facebook/dinov2-base \\
    --reference zibo=photos/zibo --reference neon=photos/neon
python -m benchmarks.compos.composlora --subset reality --loras ComposLoRA/lora/reality \\
    --model SG161222/Realistic_Vision_V5.1_noVAE --vae stabilityai/sd-vae-ft-mse --out composlora \\
    --clip openai/clip-vit-base-patch32 --dino facebook/dinov2-base --references photos
python -m benchmarks.compos.mole --plan plan.json --model sd21 --loras loras --out mole \\
    --clip openai/clip-vit-base-patch16 --references photos
```

`compos.composlora` is ComposLoRA itself ([arXiv 2402.16843](https://arxiv.org/abs/2402.16843)): all
480 sets of two to five of its 22 LoRAs in two subsets, with its prompts, sizes, steps, guidance and
weights, by every way above. `--sets 20 --ways weighted,switch,composite` is a part of it. LoRA
files that are missing are named with their ids at Civitai before anything is done; `--references`
holds a folder of pictures for each LoRA, `character_1` and so on. It goes on after a stop. All
pictures, a results file and its tables are in `--out`. `--judge FOLDER`, a vision-language model of
transformers, compares the pictures of every way with the weighted sum's, in both orders, by
ComposLoRA's criteria in our own words. (The papers' judges, GPT-4V and MiniCPM-V 2.6, are a service
and a model that brings code of its own, which is not run here.)

`compos.mole` is MoLE's evaluation ([arXiv 2404.13628](https://arxiv.org/abs/2404.13628)) on sets of
your LoRAs, as the paper's 15 triples: `--plan` names them and their prompts (`--help` shows its
form). For each set it trains gates by `composer train-gates`, with `--paper` and by default
(`--training "--steps 400"` gives it more options), and scores 200 pictures of each prompt by CLIP,
for the prompt and for each concept, beside NLA and the weighted sum; `--ways` names others.

No figures of these are published here, for want of the LoRAs, the models and the encoders: tests
run them on stand-ins. What is measured on the shipped world is in [results.md](results.md)."""


def methods_page(advice: Sequence[str] = ()) -> str:
    """The page's text. advice: paragraphs on which to use, from what was measured."""
    parts = [HEAD, markdown_table(list(_rows()))]
    parts += ["## Which should I use?", *advice] if advice else []
    parts += ["## Parameters", markdown_table(list(_parameters())), ELSEWHERE, PROTOCOLS]
    return "\n\n".join(parts) + "\n"


def _rows() -> Iterator[Mapping[str, Any]]:
    for kind, recipe in RECIPES.items():
        name = f"`--{recipe.source} FILE`" if recipe.source else f"`{kind}`"
        yield {
            "way": f"[{recipe.title}]({recipe.paper})",
            "name": name,
            "what it does": recipe.description,
            "passes": recipe.passes_needed,
            "LoRAs": str(recipe.exactly or "any"),
        }


def _parameters() -> Iterator[Mapping[str, Any]]:
    for kind, recipe in RECIPES.items():
        if recipe.source:
            continue
        about = fields_of(recipe)
        for name, usual in recipe().parameters.items():
            choices = choices_of(about[name][0])
            yield {
                "name": f"`{kind}:{name}`",
                "what it is": about[name][1].help,
                "range": " or ".join(choices) if choices else about[name][1].range,
                "default": str(usual),
            }
