"""One stage of the recipe as a process: `python -m toybox.stage NAME --work FOLDER`.

A stage goes on from its checkpoint in the work folder; its minutes are a budget for all its runs
together, and its learning rate follows the part of it that is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from toybox.loop import Stage, join_world
from toybox.recipe import MINUTES, STAGES


def main() -> None:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("runs/toybox"))
    parser.add_argument("--minutes", type=float, help="the whole budget, earlier runs included")
    parser.add_argument("--scale", type=float, default=1.0, help="budgets and steps times this")
    parser.add_argument("--out", type=Path, help="the model: `assemble` writes it")
    parser.add_argument("--loras", type=Path, default=Path("loras"), help="where LoRAs go")
    parser.add_argument("--start", type=Path, help="a finished model's folder to start from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", default="0/1", help="of `loras`: every 2nd from the 1st is 0/2")
    parser.add_argument("--balance", type=float, default=1e-2, help="of `mixlora`'s experts")
    parser.add_argument("--count", type=int, default=100, help="pictures of each bar of `measure`")
    given = parser.parse_args()
    join_world()
    given.work.mkdir(parents=True, exist_ok=True)
    minutes = given.minutes or MINUTES.get(given.name, 0) * given.scale
    stage = Stage(
        name=given.name, minutes=minutes, folder=given.work, device=given.device, seed=given.seed
    )
    if given.name == "vae":
        from toybox.stage_vae import examine_vae, train_vae

        start = given.start and given.start / "vae"
        print(examine_vae(train_vae(stage, start=start)), flush=True)
        return
    if given.name == "loras":
        from composer.diffusion.load import load_model
        from toybox.stage_loras import train_all

        if given.out is None:
            parser.error("loras needs --out, the model")
        first, step = map(int, given.share.split("/"))
        train_all(load_model(str(given.out)), given.loras, share=(first, step))
        return
    if given.name in ("mixlora", "language"):
        if given.out is None:
            parser.error(f"{given.name} needs --out, the model")
        (_mixlora if given.name == "mixlora" else _language)(stage, given)
        return
    if given.name == "measure":
        from toybox.measure import measure

        if given.out is None:
            parser.error("measure needs --out, the model")
        sheet = given.work / "measure.webp"
        for line in measure(given.out, count=given.count, device=given.device, sheet=sheet):
            print(line, flush=True)
        return
    from toybox.tokens import build_tokenizer

    tokenizer = build_tokenizer()
    if given.name == "clip":
        from toybox.stage_clip import train_clip

        train_clip(stage, tokenizer, start=given.start and given.start / "clip")
        return
    from toybox.assemble import text_encoder_of
    from toybox.stage_clip import load_trained_clip
    from toybox.stage_decoder import load_trained_decoder, redraw_by, train_decoder
    from toybox.stage_unet import load_trained_unet, train_unet
    from toybox.stage_vae import examine_vae, load_trained_vae

    clip = load_trained_clip(given.work, tokenizer)
    vae, encoder = load_trained_vae(given.work), text_encoder_of(clip)
    if given.name == "unet":
        train_unet(stage, vae, tokenizer, encoder, start=given.start and given.start / "unet")
        return
    unet = load_trained_unet(given.work)
    if given.name == "decoder":
        vae = train_decoder(stage, vae, clip, redraw_by(unet, tokenizer, encoder))
        print(examine_vae(vae), flush=True)
        return
    if (given.work / "decoder.safetensors").exists():
        vae = load_trained_decoder(given.work)
    oracle_folder = given.work / "oracle"
    if given.name == "assemble":
        from toybox.assemble import assemble
        from toybox.building import write_account

        if given.out is None:
            parser.error("assemble needs --out")
        oracle_folder = oracle_folder if oracle_folder.exists() else None
        assemble(
            given.out, vae=vae, unet=unet, clip=clip, tokenizer=tokenizer, oracle=oracle_folder
        )
        write_account(given.work, given.out)
        return
    from toybox.stage_oracle import examine, first_guess, train_oracle

    guess = first_guess(unet, tokenizer, encoder)
    oracle = train_oracle(stage, vae, guess)
    oracle.save(oracle_folder)
    for row in examine(oracle, vae, guess):
        print(row, flush=True)


def _mixlora(stage: Stage, given: argparse.Namespace) -> None:
    from composer.mixlora import RouterSettings
    from toybox.stage_loras import TAUGHT, training_pictures
    from toybox.stage_mixlora import STEPS, settings, train_characters
    from toybox.world import CHARACTERS, element

    loras = {lora.name: lora for lora in TAUGHT}
    characters = [element(name) for name in CHARACTERS]
    config = settings(
        given.loras,
        characters,
        steps=max(round(2 * STEPS * given.scale), 2),
        router=RouterSettings(experts=6, top_k=2, balance=given.balance),
        per_layer=True,
    )
    train_characters(given.out, config, characters, lambda one: training_pictures(loras[one.name]))


def _language(stage: Stage, given: argparse.Namespace) -> None:
    from toybox.language_tokens import build_language_tokenizer
    from toybox.stage_expand import build_language
    from toybox.words import WORDS

    folder, tokenizer = given.out / "language", build_language_tokenizer()
    build_language(stage, folder, tokenizer, WORDS, scale=given.scale)


if __name__ == "__main__":
    main()
