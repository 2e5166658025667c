"""The nodes in the real ComfyUI: its validation, its executor, its samplers, its classes of networks.

``COMFYUI_PATH`` names a checkout, and ``COMFYUI_PYTHON`` the Python that has what it requires, this one by default.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("real_graphs.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH does not name a checkout of ComfyUI"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    paths = [str(PROGRAM.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [python, str(PROGRAM), str(tmp_path_factory.mktemp("networks"))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "edm"])
def test_the_image_is_that_of_attach(kind, found):
    assert found[kind]["difference"] < 1e-4 < 0.003 < found[kind]["moved"]
    assert found[kind]["without strength"] == 0


def test_the_packaged_clip_steers_a_stochastic_sampler_by_cutouts(found):
    assert not found["errors"]["packaged"]
    assert found["packaged"] == [2, 32, 32, 3]


def test_errors_are_told_in_the_nodes_own_box(found):
    errors = found["errors"]
    assert all(
        each.startswith("ClipGuidanceLoad: ") and "no model: expected config.json" in each for each in errors["clip"]
    )
    assert all("ClipGuidanceLoad: " in each and "no CLIP 'nothing': expected one of" in each for each in errors["name"])
    assert all("start=0.5 must be below stop=0.2" in each for each in errors["window"])
    assert [each.partition(": ")[0] for each in errors["target"]] == ["ClipGuidanceSteer"]
    assert all(errors[each] for each in ("clip", "name", "window", "target"))
