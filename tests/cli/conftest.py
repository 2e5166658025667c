"""The command line run in this process, on tiny models and images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.factories import save_tiny_clip, save_tiny_pipeline
from PIL import Image

from clip_guidance.cli.main import run


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def table(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")  # so that error panels do not break lines

    def cli(*words) -> Done:
        with pytest.raises(SystemExit) as exit:
            run([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(exit.value.code or 0, captured.out, captured.err)

    return cli


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("judge"), seed=1)


@pytest.fixture(scope="module")
def pipeline(clip, tmp_path_factory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipeline"), clip)


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of three good images and a broken one."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"")
    return folder


@pytest.fixture
def good(images) -> list[Path]:
    return [images / f"{name}.png" for name in "abc"]
