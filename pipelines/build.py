"""Build folders that are ready to upload to the hub: models, a guider, blocks and pipelines, each with its card.

    python pipelines/build.py --output hub --owner alice

writes ``hub/alice/emoji-clip`` and its like. A card's snippet names ``alice/emoji-clip``, so that it runs inside the
folder ``hub`` before anything is uploaded, and anywhere afterwards. Nothing is downloaded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

from diffusers import StableDiffusionXLAutoBlocks
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

import clip_guidance as cg
from clip_guidance.clip.hub import PACKAGED
from clip_guidance.training.settings import parse_settings

HERE = Path(__file__).parent
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
GUIDE = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Settings:
    """What to build, and where."""

    output: str  # folder to write into; it is made where there is none
    owner: str = "clip-guidance"  # user or organisation of the hub that the cards name
    only: list[str] | None = None  # names of the artefacts to build; by default all


@dataclass(frozen=True)
class Custom:
    """A stock pipeline of diffusers, and a model of it for the card's snippet."""

    base: str
    model: str
    steps: int = 20


CUSTOM = {
    "clip-guided-stable-diffusion": Custom("StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "clip-guided-sdxl": Custom("StableDiffusionXLPipeline", SDXL),
    "clip-guided-sd3": Custom("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3-medium-diffusers"),
    "clip-guided-flux": Custom("FluxPipeline", "black-forest-labs/FLUX.1-schnell", steps=4),
}


def build_clip(packaged: str, folder: Path, owner: str) -> None:
    """Copy a packaged CLIP, and add what its packaged card says."""
    shutil.copytree(PACKAGED / packaged / "clip", folder)
    write_card(folder, owner)
    add_packaged_card(folder, packaged)


def build_pipeline(packaged: str, folder: Path, owner: str) -> None:
    """Save a packaged pipeline, in float32: the parts of a half one come out of diffusers in different precisions."""
    pipeline = cg.load_pipeline(packaged)
    for part in (pipeline.unet, pipeline.vae):
        part.register_to_config(_name_or_path=f"{owner}/{folder.stem}")  # not where this package is installed
    pipeline.save_pretrained(folder)
    write_card(folder, owner)
    add_packaged_card(folder, packaged)


def build_guider(folder: Path, owner: str) -> None:
    """Save a guidance as the guider of Stable Diffusion XL, whose other components are left where they are."""
    clip = cg.CLIP.from_pretrained("emoji")
    clip.name_or_path = GUIDE  # a config holds the name of a CLIP alone, so that this one need not be loaded
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(guider=cg.CLIPGuidance(clip, "a red apple", guider=ClassifierFreeGuidance(5.0)))
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    path = folder / "modular_model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    optional = ("controlnet", "feature_extractor", "image_encoder")  # which the model has not
    for name, value in index.items():
        if isinstance(value, list) and name not in optional:
            place = f"{owner}/clip-guider" if name == "guider" else SDXL
            value[2].update(pretrained_model_name_or_path=place, subfolder=name)
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_card(folder, owner)


def build_block(module: str, class_name: str, folder: Path, owner: str) -> None:
    """Copy a block's code, load it back from there, and write what diffusers needs to find it."""
    folder.mkdir()
    for name in (module, "around"):
        shutil.copyfile(HERE / "blocks" / f"{name}.py", folder / f"{name}.py")
    make = get_class_from_dynamic_module(
        folder, module_file=f"{module}.py", class_name=class_name, trust_remote_code=True
    )
    block = make()
    block.save_pretrained(folder)
    block.init_pipeline().save_pretrained(str(folder), overwrite_modular_index=False)
    write_card(folder, owner)


def build_custom(name: str, folder: Path, owner: str) -> None:
    """Write the community pipeline with another stock pipeline as its base."""
    folder.mkdir()
    code = (HERE / "clip_guided_stable_diffusion.py").read_text(encoding="utf-8")
    code = code.replace("pipelines/clip_guided_stable_diffusion.py", f"{owner}/{name}")
    code = code.replace("StableDiffusionPipeline", CUSTOM[name].base)
    (folder / "pipeline.py").write_text(code, encoding="utf-8")
    values = {field.upper(): value for field, value in vars(CUSTOM[name]).items()}
    write_card(folder, owner, "clip-guided-pipeline", NAME=name, **values)


ARTEFACTS: dict[str, Callable[[Path, str], None]] = {
    "emoji-clip": partial(build_clip, "emoji"),
    "emoji-judge": partial(build_clip, "emoji-judge"),
    "emoji-pipeline": partial(build_pipeline, "emoji"),
    "clip-guider": build_guider,
    "clip-guided-denoise": partial(build_block, "clip_guided_denoise", "CLIPGuidedDenoise"),
    "clip-judge": partial(build_block, "clip_judge", "CLIPJudge"),
    "best-of-n": partial(build_block, "best_of_n", "BestOfN"),
    **{name: partial(build_custom, name) for name in CUSTOM},
}


def write_card(folder: Path, owner: str, card: str = "", **values: object) -> None:
    """Write the card of a folder, in which ``$OWNER`` and the like are filled in."""
    template = Template((HERE / "cards" / f"{card or folder.stem}.md").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(template.substitute(OWNER=owner, **values), encoding="utf-8")


def add_packaged_card(folder: Path, packaged: str) -> None:
    """Add the card of a packaged model without its title, and the images that it shows."""
    source = PACKAGED / packaged / "README.md"
    _, _, text = source.read_text(encoding="utf-8").partition("\n")
    for link in re.findall(r"!\[[^]]*\]\((\S+)\)", text):
        shutil.copyfile(source.parent / link, folder / Path(link).name)
        text = text.replace(link, Path(link).name)
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(text)


def main(settings: Settings) -> None:
    names = list(ARTEFACTS) if settings.only is None else settings.only
    if unknown := [name for name in names if name not in ARTEFACTS]:
        raise SystemExit(f"--only {unknown[0]:.60}: there is no such artefact; there are {', '.join(ARTEFACTS)}")
    if not re.fullmatch(r"\w[\w-]{0,95}", settings.owner, re.ASCII):
        raise SystemExit(f"--owner {settings.owner:.60}: expected a name of the hub, of letters, digits, '-' and '_'")
    parent = Path(settings.output, settings.owner)
    if there := [name for name in names if (parent / name).exists()]:
        raise SystemExit(f"{parent / there[0]}: is there already; remove it, or write into another --output")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            partial_folder = parent / f"{name}.part"
            shutil.rmtree(partial_folder, ignore_errors=True)  # of a run that was cut off
            ARTEFACTS[name](partial_folder, settings.owner)
            partial_folder.rename(parent / name)
            print(parent / name)
    except OSError as error:
        raise SystemExit(f"{settings.output}: cannot be written: {error}") from error


if __name__ == "__main__":
    main(parse_settings(Settings))
