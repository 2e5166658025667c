"""Two tiny CLIPs in folders and in a cache of the hub."""

import shutil

import pytest
from helpers.factories import save_tiny_clip
from helpers.hub_caches import COMMITS, lay_out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two CLIPs of other weights, as folders."""
    root = tmp_path_factory.mktemp("clips")
    return {name: save_tiny_clip(root / name, seed) for seed, name in enumerate(COMMITS)}


@pytest.fixture(scope="module")
def cached(folders, tmp_path_factory):
    """Options with which ``owner/clip`` is read: main and v1 are other weights, and so are those in a subfolder."""
    cache = tmp_path_factory.mktemp("cache")
    both = tmp_path_factory.mktemp("both") / "repository"
    shutil.copytree(folders["main"], both)
    shutil.copytree(folders["v1"], both / "inner" / "clip")
    return lay_out(cache, "owner/clip", {"main": both, "v1": folders["v1"]})
