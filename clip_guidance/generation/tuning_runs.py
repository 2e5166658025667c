"""The images that a tune has drawn, as lines of JSON: what was interrupted goes on where it was.

The first line says what is drawn; every other one holds an image of a setting, by the judge's state of it, or why a
setting could not be drawn.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_guidance._files import fsync_file
from clip_guidance._tuned import GuidanceDefaults


@dataclass(frozen=True)
class DrawnImage:
    """Hold what is kept of an image.

    Attributes:
        seconds: Seconds that the pipeline took.
        state: The judge's pooled state of the image, D numbers.
        calibrated: The strength that a calibrated setting came to; None where it was given.
    """

    seconds: float
    state: list[float]
    calibrated: float | None = None


class TuningRuns:
    """Keep what was drawn in a file; what the file holds already is not drawn again.

    Args:
        path: The file; None to keep it in memory alone.
        facts: What is drawn: pipeline, CLIP, judge, prompts, seed and arguments of the pipeline, as JSON holds them.

    Raises:
        OSError: The file cannot be read or written.
        ValueError: The file holds something else, or another tune.
    """

    def __init__(self, path: str | os.PathLike[str] | None, facts: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._drawn: dict[tuple[GuidanceDefaults, int], DrawnImage] = {}
        self._failed: dict[GuidanceDefaults, str] = {}
        if self._path is not None and not self._read(self._path, json.loads(json.dumps(facts))):
            self._write(facts)

    def image(self, setting: GuidanceDefaults, prompt: int) -> DrawnImage | None:
        """Return the image of a setting and the prompt of this number; None if it is not drawn yet."""
        return self._drawn.get((setting, prompt))

    def failure(self, setting: GuidanceDefaults) -> str:
        """Return why a setting cannot be drawn; "" if nothing is known of that."""
        return self._failed.get(setting, "")

    def add(self, setting: GuidanceDefaults, prompt: int, image: DrawnImage) -> None:
        """Keep an image."""
        self._drawn[setting, prompt] = image
        self._write({"setting": asdict(setting), "prompt": prompt, **asdict(image)})

    def fail(self, setting: GuidanceDefaults, reason: str) -> None:
        """Keep why a setting cannot be drawn."""
        self._failed[setting] = reason
        self._write({"setting": asdict(setting), "failed": reason})

    def _write(self, row: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write((json.dumps(row, allow_nan=False) + "\n").encode())
                fsync_file(file)

    def _read(self, path: Path, facts: dict[str, Any]) -> bool:
        """Read what the file holds, without a line that was cut short; return whether it holds anything."""
        if not path.exists():
            return False
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        try:
            head, *rows = [json.loads(line) for line in whole.splitlines()] or [None]
            if head is not None and head != facts:
                changed = [name for name in facts if not isinstance(head, dict) or head.get(name) != facts[name]]
                raise ValueError(f"holds a tune with another {', '.join(changed) or 'version'}: name a new file")
            for row in rows:
                setting = GuidanceDefaults(**row["setting"])
                if "failed" in row:
                    self._failed[setting] = str(row["failed"])
                else:
                    image = DrawnImage(row["seconds"], row["state"], row["calibrated"])
                    self._drawn[setting, row["prompt"]] = image
        except (TypeError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: is no file of a tune ({type(error).__name__}: {error!s:.80})") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return head is not None
