"""A repository of pickles: the weights that the hub's bot converted, from the cache or from its pull request."""

import shutil
import warnings
from types import SimpleNamespace

import pytest
from helpers.hub_caches import lay_out, same
from huggingface_hub.hf_api import RepoFile

from clip_guidance.clip import CLIP, ModelError, converted
from clip_guidance.clip.hub import HubOptions, Place


@pytest.fixture
def pickled(folders, tmp_path):
    """What the main branch holds, its weights being none that are read, and what conversions hold: weights alone."""
    main, conversion = shutil.copytree(folders["main"], tmp_path / "main"), tmp_path / "conversion"
    conversion.mkdir()
    (main / "model.safetensors").rename(conversion / "model.safetensors")
    (main / "pytorch_model.bin").write_bytes(b"a pickle")
    return main, conversion


def test_the_newest_conversion_in_the_cache_is_used_and_named(pickled, folders, tmp_path):
    main, conversion = pickled
    (empty := tmp_path / "empty").mkdir()
    older = shutil.copytree(folders["v1"], tmp_path / "older")
    revisions = {"main": main, "refs/pr/9": older, "refs/pr/21": conversion, "refs/pr/30": empty}
    options = lay_out(tmp_path / "cache", "owner/clip", revisions)
    with pytest.warns(UserWarning, match=r"owner/clip: its weights are pickled; used are .*revision='refs/pr/21'"):
        same(CLIP.from_pretrained("owner/clip", **options), folders["main"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a version that is asked for is the one that is loaded
        same(CLIP.from_pretrained("owner/clip", revision="refs/pr/9", **options), folders["v1"])


def test_without_a_conversion_the_message_says_how_to_get_one(pickled, tmp_path):
    options = lay_out(tmp_path / "cache", "owner/clip", {"main": pickled[0]})
    with pytest.raises(ModelError, match=r"no model.safetensors.*spaces/safetensors/convert.*'refs/pr/N'") as caught:
        CLIP.from_pretrained("owner/clip", **options)
    assert len(str(caught.value)) <= 300


class Hub:
    """The hub's answers: pull requests of the bot, and what the pickles are in each."""

    def __init__(self, pickles: dict[str, str], fails: bool = False):
        self.pickles, self.fails = pickles, fails

    def __call__(self, token):
        assert token == "secret"
        return self

    def get_repo_discussions(self, repo_id, author, discussion_type, discussion_status):
        if self.fails:
            raise RuntimeError("no connection")
        assert (repo_id, author, discussion_type, discussion_status) == ("a/b", "SFconvertbot", "pull_request", "open")
        return [SimpleNamespace(num=int(name.rpartition("/")[2])) for name in self.pickles if name != "main"]

    def get_paths_info(self, repo_id, paths, revision):
        assert paths == ["pytorch_model.bin"]
        found = self.pickles[revision]
        return [RepoFile(path=paths[0], size=1, oid=found)] if found else []


@pytest.mark.parametrize(
    ("hub", "revision"),
    [
        (Hub({"main": "x", "refs/pr/3": "old", "refs/pr/8": "x"}), "refs/pr/8"),  # one converted other weights
        (Hub({"main": "x", "refs/pr/3": "old"}), None),
        (Hub({"main": "", "refs/pr/3": ""}), None),
        (Hub({"main": "x"}), None),
        (Hub({"main": "x", "refs/pr/3": "x"}, fails=True), None),
    ],
)
def test_on_the_hub_it_is_the_bots_request_for_the_weights_of_main(hub, revision, monkeypatch):
    monkeypatch.setattr(converted, "HfApi", hub)
    assert converted._conversion(Place("a/b", "a/b", HubOptions(token="secret").as_dict())) == revision
    offline = HubOptions(token="secret", local_files_only=True).as_dict()
    assert converted._conversion(Place("a/b", "a/b", offline)) is None
