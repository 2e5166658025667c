"""``from_pretrained``: its options act or are refused; folders and repositories of the hub behave alike."""

import shutil
import warnings

import pytest
import torch
from helpers.factories import make_clip
from helpers.hub_caches import COMMITS, lay_out, ours, same
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

import clip_guidance as cg
from clip_guidance.clip import CLIP, CLIPConfig, ModelError


@pytest.mark.slow
def test_a_revision_is_the_one_that_is_loaded(cached, folders):
    same(CLIP.from_pretrained("owner/clip", **cached), folders["main"])
    same(CLIP.from_pretrained("owner/clip", revision="v1", **cached), folders["v1"])
    same(CLIP.from_pretrained("owner/clip", revision=COMMITS["v1"], **cached), folders["v1"])
    same(CLIP.from_pretrained("owner/clip", subfolder="inner/clip", **cached), folders["v1"])
    with pytest.raises(ModelError, match=r"owner/clip: no model: expected config.json on the hub or in its cache"):
        CLIP.from_pretrained("owner/clip", revision="v2", **cached)


def test_prefixes_say_what_a_name_is(cached, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["v1"], tmp_path / "emoji")
    same(CLIP.from_pretrained("local-dir:emoji"), folders["v1"])  # not the packaged model of that name
    same(CLIP.from_pretrained("hf-hub:owner/clip", **cached), folders["main"])
    with pytest.raises(ModelError, match="local-dir:nowhere: expected a folder"):
        CLIP.from_pretrained("local-dir:nowhere")
    shutil.copytree(folders["v1"], tmp_path / "owner" / "clip")
    with pytest.raises(ModelError, match="hf-hub:owner/clip: a folder of this name is here"):
        CLIP.from_pretrained("hf-hub:owner/clip", **cached)


def test_dtype_device_and_subfolder_of_a_folder(folders):
    name = folders["main"].parent
    for options in ({"dtype": "float64"}, {"torch_dtype": torch.float64}, {"dtype": torch.float64}):
        clip = CLIP.from_pretrained(name, subfolder="main", device="cpu", **options)
        assert clip.dtype == torch.float64
        same(clip.float(), folders["main"])
    assert CLIP.from_pretrained(folders["main"], dtype="auto").dtype == torch.float32


@pytest.mark.slow
def test_options_of_transformers_act(tmp_path, folders):
    clip = make_clip(seed=3)
    clip.save_pretrained(tmp_path)
    weights = {name: tensor + 1 for name, tensor in clip.state_dict().items()}
    loaded, info = CLIP.from_pretrained(tmp_path, state_dict=weights, device_map="cpu", output_loading_info=True)
    assert all(loaded.state_dict()[name].equal(tensor) for name, tensor in weights.items())
    assert not info["missing_keys"] and not info["unexpected_keys"]
    lost = {name: tensor for name, tensor in weights.items() if name != "visual_projection.weight"}
    for others in (lost, {**weights, "more": torch.zeros(1)}):  # told, where else there is an error or a warning
        _, info = CLIP.from_pretrained(tmp_path, state_dict=others, output_loading_info=True)
        assert info["missing_keys"] | set(info["unexpected_keys"]) == weights.keys() ^ others.keys()
    with pytest.raises(ModelError, match="weights missing from it: visual_projection.weight"):
        CLIP.from_pretrained(tmp_path, state_dict=lost)
    for name in (tmp_path, folders["main"]):  # of this package and of transformers
        eager = CLIP.from_pretrained(name, attn_implementation="eager")
        assert eager.image_encoder.config._attn_implementation == "eager"
        assert CLIP.from_pretrained(name).image_encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"revison": "v1"}, TypeError, r"from_pretrained: unknown option revison; did you mean revision\?"),
        ({"trust_remote_code": True}, TypeError, "trust_remote_code: no code of a repository is run"),
        ({"variant": "fp16"}, TypeError, "variant: a CLIP has one file of weights, and dtype converts it; got 'fp16'"),
        ({"adapter_kwargs": {"name": "x"}}, TypeError, "adapter_kwargs: load adapters with peft.*got name"),
        ({"config": {}}, TypeError, "config: expected a clip_guidance.CLIPConfig, got dict"),
        ({"tokenizer": 3}, TypeError, "tokenizer: expected a tokenizer of transformers or a name, got int"),
        ({"tokenizer": "x"}, ValueError, "x: neither a folder, nor a packaged model"),
        ({"image_processor": 3}, TypeError, "image_processor: expected an ImageProcessor or a name, got int"),
        ({"device_map": "auto"}, TypeError, r"device_map: only for a CLIP that was saved by this package; .*\(clip\)"),
        ({"state_dict": {}}, TypeError, "state_dict: only for a CLIP that was saved by this package"),
        ({"output_loading_info": "yes"}, TypeError, "output_loading_info: got 'yes' of type str"),
        ({"attn_implementation": "foo"}, ModelError, 'attn_implementation="foo"` is not supported'),
        ({"revision": 3}, TypeError, "revision: expected str or NoneType, got 3"),
        ({"revision": "v1"}, ValueError, "a folder has no revisions, got 'v1'"),
        ({"dtype": "int8"}, ValueError, "dtype: expected a floating-point type .*, got 'int8'"),
        ({"device": "meta"}, ValueError, "device meta: its tensors have no values"),
        ({"device": "gpu"}, ValueError, "device gpu: "),
    ],
)
def test_what_cannot_act_is_refused(folders, options, error, message):
    with pytest.raises(error, match=message):
        CLIP.from_pretrained(folders["main"], **options)


def test_a_packaged_model_has_no_revision():
    for options in ({"revision": "v1"}, {"subfolder": "clip"}):
        with pytest.raises(ValueError, match=f"emoji is packaged and takes no {next(iter(options))}"):
            CLIP.from_pretrained("emoji", **options)
        with pytest.raises(ValueError, match=f"emoji is packaged and takes no {next(iter(options))}"):
            cg.load_pipeline("emoji", **options)


@pytest.mark.slow
def test_automodel_passes_its_options_on(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it looks for adapters without our options
    make_clip(seed=3).save_pretrained(tmp_path / "main")
    make_clip(seed=4).save_pretrained(tmp_path / "v1")
    options = lay_out(tmp_path / "cache", "owner/own", {name: tmp_path / name for name in COMMITS})
    for revision, folder in ((None, "main"), ("v1", "v1")):
        expected = CLIP.from_pretrained(tmp_path / folder).fingerprint()
        assert AutoModel.from_pretrained("owner/own", revision=revision, **options).fingerprint() == expected
    config = CLIPConfig(**CLIP.from_pretrained(tmp_path / "main").config.to_dict())
    config.vision_config.hidden_act = "relu"
    assert CLIP.from_pretrained(tmp_path / "main", config=config).config.vision_config.hidden_act == "relu"


_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.text(max_size=400), st.just([]), st.just({}))
_NAMES = st.sampled_from(["revision", "token", "cache_dir", "local_files_only", "subfolder", "dtype", "device"])
_OTHERS = st.sampled_from(["config", "adapter_kwargs", "trust_remote_code", "torch_dtype", "tokenizer", "revison"])


@pytest.mark.slow
@given(st.one_of(_VALUES, st.sampled_from(["FOLDER", "owner/clip", "hf-hub:owner/clip", "a/b"])), st.data())
def test_any_arguments_give_a_model_or_a_sentence(cached, folders, name, data):
    """What loads is the model that the name, the revision and the subfolder say; anything else is told in a line."""
    options = data.draw(st.dictionaries(st.one_of(_NAMES, _OTHERS), _VALUES, max_size=2)) | cached
    options["device"] = options.get("device") if options.get("device") != "meta" else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clip = CLIP.from_pretrained(folders["main"] if name == "FOLDER" else name, **options)
    except (ValueError, TypeError) as error:
        assert len(str(error)) <= 300 and "\n" not in str(error)
        return
    assert name in ("FOLDER", "owner/clip", "hf-hub:owner/clip") and not options.get("revision")
    assert torch.equal(clip.float().encode_text("a"), ours(folders["main"]).encode_text("a"))
