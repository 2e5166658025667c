"""Train every packaged model from nothing, one recipe after the other.

    python training/make_models.py --mixed_precision bf16

``recipes/packaged.yaml`` names the programs and their recipes in order. A stage that is interrupted goes on from its
checkpoint when this is started again; one that is finished is left as it is. The seconds of each stage, and the device,
are written to ``runs/packaged.json``, also those of earlier starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from clip_guidance._files import write_atomically
from clip_guidance.training.settings import parse_settings

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """What to run."""

    stages: str = str(HERE / "recipes" / "packaged.yaml")  # the programs and their recipes, in order
    log: str = "runs/packaged.json"  # what is finished, and the seconds that it took
    mixed_precision: str = "no"  # "no", or "bf16" on a GPU
    limit_steps: int = 0  # of every stage, for a trial of the whole; 0 for those of the recipes


@dataclass(frozen=True)
class Stage:
    """A program with its recipe."""

    program: str
    recipe: str

    def command(self, folder: Path, settings: Settings) -> list[str]:
        """Make the command that runs this stage."""
        launch = ["-m", "accelerate.commands.launch", "--mixed_precision", settings.mixed_precision]
        limits = [f"--{name}={count}" for name, count in self.limits(folder, settings.limit_steps).items()]
        return [sys.executable, *launch, str(HERE / self.program), "--config", str(folder / self.recipe), *limits]

    def limits(self, folder: Path, most: int) -> dict[str, int]:
        """Return the numbers of steps of the recipe that a trial lowers."""
        steps = {k: v for k, v in yaml.safe_load((folder / self.recipe).read_text()).items() if k.endswith("steps")}
        return {name: most for name, count in steps.items() if 0 < most < count}


def read_stages(path: Path) -> Iterator[Stage]:
    """Read the stages in order.

    Raises:
        SystemExit: The file holds something else, or names a program or a recipe that is not there.
    """
    for number, entry in enumerate(yaml.safe_load(path.read_text()) or [], 1):
        if not isinstance(entry, dict) or len(entry) != 1:
            raise SystemExit(f"{path}: expected `program: recipe` as entry {number}, got {str(entry)[:80]}")
        stage = Stage(*map(str, *entry.items()))
        for file in (HERE / stage.program, path.parent / stage.recipe):
            if not file.is_file():
                raise SystemExit(f"{path}: entry {number} names {file}, which is not there")
        yield stage


def main(settings: Settings) -> None:
    path, log = Path(settings.stages), Path(settings.log)
    done: list[dict[str, Any]] = json.loads(log.read_text()) if log.exists() else []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    for stage in list(read_stages(path)):
        # What was finished with fewer steps or in another precision is another model.
        entry = {**asdict(stage), "limit_steps": settings.limit_steps, "mixed_precision": settings.mixed_precision}
        if any(entry.items() <= finished.items() for finished in done):
            print(f"{stage.recipe}: finished before")
            continue
        start = time.monotonic()
        code = subprocess.run(stage.command(path.parent, settings)).returncode
        if code:
            raise SystemExit(f"{stage.recipe}: {stage.program} ended with {code}; start again to go on from there")
        done.append({**entry, "seconds": round(time.monotonic() - start, 1), "device": device})
        log.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(log) as part:
            part.write_text(json.dumps(done, indent=1) + "\n")
    print(f"{sum(entry['seconds'] for entry in done):.0f} seconds in all")


if __name__ == "__main__":
    main(parse_settings(Settings))
