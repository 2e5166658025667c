"""``from_pretrained``: its options act or are refused; folders and repositories of the hub behave alike."""

import copy
import functools
import itertools
import json
import re
import shutil
import warnings

import pytest
import torch
from helpers.factories import TEXTS, letter_tokenizer, make_clip, make_tokenizer, save_tiny_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast, pipeline

import clip_guidance as cg
from clip_guidance.clip import CLIP, CLIPConfig, ModelError

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def lay_out(cache, repository, revisions):
    """Lays a repository out in a cache of the hub as a download does: revisions are names of folders' contents."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    for revision, folder in revisions.items():
        (root / "refs" / revision).write_text(COMMITS[revision])
        shutil.copytree(folder, root / "snapshots" / COMMITS[revision])
    return {"cache_dir": cache, "local_files_only": True}


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


def texts_of(folder):
    """The text embeddings by transformers."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        features = model.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    return torch.nn.functional.normalize(features)


@functools.cache
def ours(folder):
    return CLIP.from_pretrained(folder)


@functools.cache
def theirs(folder):
    return CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)


def same(clip, folder):
    torch.testing.assert_close(clip.encode_text(TEXTS), texts_of(folder), rtol=0, atol=1e-6)


# Options


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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"revison": "v1"}, TypeError, r"from_pretrained: unknown option revison; did you mean revision\?"),
        ({"trust_remote_code": True}, TypeError, "trust_remote_code: no code of a repository is run"),
        ({"adapter_kwargs": {"name": "x"}}, TypeError, "adapter_kwargs: load adapters with peft.*got name"),
        ({"config": {}}, TypeError, "config: expected a clip_guidance.CLIPConfig, got dict"),
        ({"tokenizer": "x"}, TypeError, "tokenizer: expected a tokenizer of transformers, got str"),
        ({"image_processor": 3}, TypeError, "image_processor: expected an ImageProcessor, got int"),
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


# Tokenizers


def words_tokenizer(kind):
    """Whole words: "a" is 4; the end token is not the last id."""
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "<s>", "</s>", "a", "red", "apple", "photo", "of"])}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]") if kind == "wordpiece" else models.WordLevel(words))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 2), ("</s>", 3)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=40, **names)


@pytest.fixture(params=["folder", "hub"])
def loaded_from(request, tmp_path):
    """Loads a CLIP from a folder, or from a hub cache that holds the same files."""
    numbers = itertools.count()

    def load(folder, **options):
        if request.param == "folder":
            return CLIP.from_pretrained(folder, **options)
        cached = lay_out(tmp_path / f"cache{next(numbers)}", "owner/clip", {"main": folder})
        return CLIP.from_pretrained("owner/clip", **cached, **options)

    return load


def test_a_model_without_a_vocabulary_is_refused_unless_one_is_given(loaded_from, folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=r": no vocabulary: expected tokenizer.json, or vocab.json and merges.txt"):
            loaded_from(folder)
    same(loaded_from(folder, tokenizer=letter_tokenizer()), folders["main"])


@pytest.mark.parametrize("kind", ["wordpiece", "wordlevel"])
def test_the_class_that_the_files_name_reads_them(loaded_from, kind, tmp_path):
    tokenizer = words_tokenizer(kind)
    folder = save_tiny_clip(tmp_path / "clip", tokenizer=tokenizer)
    model = CLIPModel.from_pretrained(folder).eval()
    texts = ["a red apple", "a photo of a apple", "red"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    assert inputs.input_ids[0].tolist() == [2, 4, 5, 6, 3, 1, 1]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_text_features(**inputs, token_type_ids=None).pooler_output)
    torch.testing.assert_close(loaded_from(folder).encode_text(texts), expected, rtol=0, atol=1e-6)
    # Where the class is not named, transformers takes CLIP's, which splits texts otherwise.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for named in (None, "CLIPTokenizer"):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": named}))
        with pytest.raises(ModelError, match="tokenizer cannot be loaded|json holds a Word.* that CLIPTokenizer"):
            loaded_from(folder)


def test_a_class_that_cannot_be_had_or_a_damaged_file_is_named(loaded_from, folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for change in ({"tokenizer_class": "T5Tokenizer"}, {"tokenizer_class": 5}, {"eos_token": 5}):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match="its tokenizer cannot be loaded: ") as caught:
            loaded_from(folder)
        assert len(str(caught.value)) <= 300
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for text in ("[" * 100_000, "{}", "[1]", '{"model": 5}', "\x00"):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match="its tokenizer cannot be loaded: ") as caught:
            loaded_from(folder)
        assert len(str(caught.value)) <= 300


def test_old_vocabulary_files_are_read(loaded_from, folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded: .*`vocab` and `merges`"):
        loaded_from(folder)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    same(loaded_from(folder), folders["main"])


def test_a_clip_without_a_tokenizer_is_saved_and_loaded(loaded_from, tmp_path):
    clip, image = make_clip(), Image.new("RGB", (40, 30), "red")
    CLIP(clip.config).eval().save_pretrained(tmp_path / "clip")
    loaded = loaded_from(tmp_path / "clip")
    assert loaded.tokenizer is None and loaded.encode_image(image).shape == (1, 24)
    with pytest.raises(ValueError, match=r"was made without a tokenizer: .*from_pretrained\(name, tokenizer=...\)"):
        loaded.encode_text("a red apple")
    ids = make_tokenizer()(["a red apple"], return_tensors="pt").input_ids
    given = loaded_from(tmp_path / "clip", tokenizer=make_tokenizer())
    assert torch.equal(given.encode_text("a red apple"), loaded.text_embeds(ids))
    (tmp_path / "clip" / "tokenizer_config.json").write_text("{}")  # what remains of one that was lost
    with pytest.raises(ModelError, match="no vocabulary"):
        loaded_from(tmp_path / "clip")


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_any_texts_are_those_of_transformers_or_refused(folders, texts):
    clip = ours(folders["main"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            embeds = clip.encode_text(texts)
        except ValueError as error:
            assert len(str(error)) <= 300
            assert any(not text.strip() for text in texts) and "expected a prompt" in str(error)
            return
    model, tokenizer = theirs(folders["main"])
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output)
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-6)


# Configs and weights


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)
_SMALL = st.one_of(st.integers(-1, 40), _JSON)


_OWN_FIELDS = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")
_KNOWN = [make_clip(*pair).config.to_dict() for pair in (("vit", "transformer"), ("resnet", "cbow"))]


@given(st.data(), st.sampled_from(_KNOWN), st.sampled_from(["text_config", "vision_config", None]))
def test_any_config_makes_towers_of_its_sizes_or_is_refused(data, known, part):
    whole = copy.deepcopy(known)
    changed = whole[part] if part else whole
    own = [name for name in changed if name not in ("architectures", "dtype", "transformers_version")]
    changed.update(data.draw(st.dictionaries(st.sampled_from(own), _SMALL, min_size=1, max_size=2)))
    try:
        config = CLIPConfig(**{key: whole[key] for key in _OWN_FIELDS})
    except ValueError as error:
        assert len(str(error)) <= 300 and re.match(r"\w+: |expected one depth", str(error))
        return
    text, vision = config.text_config, config.vision_config
    if max(text.vocab_size, text.hidden_size, vision.hidden_size, vision.image_size, config.projection_dim) > 1000:
        return  # right, and too large to be built here
    with torch.device("meta"):
        clip = CLIP(config)
    assert clip.text_encoder.get_input_embeddings().weight.shape == (text.vocab_size, text.hidden_size)
    assert clip.visual_projection.weight.shape == (config.projection_dim, vision.hidden_size)
    assert len(clip.image_encoder.layer_groups()) >= 2


@given(_JSON)
def test_any_json_in_place_of_a_towers_config_is_refused(value):
    for part in ("text_config", "vision_config"):
        if value is not None:  # None is the default
            with pytest.raises(ValueError, match=f"{part}: expected ") as caught:
                CLIPConfig(**{part: value})
            assert len(str(caught.value)) <= 300


@given(_JSON)
def test_any_json_for_a_config_is_refused_in_a_sentence(tmp_path_factory, document):
    folder = tmp_path_factory.mktemp("any")
    for kind in ({}, {"model_type": "clip_guidance"}, {"model_type": "clip"}):
        whole = {**document, **kind} if isinstance(document, dict) else document
        (folder / "config.json").write_text(json.dumps(whole))
        with pytest.raises(ModelError) as caught:
            CLIP.from_pretrained(folder)
        assert str(caught.value).startswith(str(folder)) and len(str(caught.value)) <= 300


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_json_that_is_nested_deeply_is_a_sentence(folders, tmp_path, name):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    (folder / name).write_text('{"a": ' * 100_000)
    with pytest.raises(ModelError, match=r"nested too deeply|RecursionError|maximum recursion depth") as caught:
        CLIP.from_pretrained(folder)
    assert len(str(caught.value)) <= 300


def test_metadata_of_weights_that_is_no_json_is_a_sentence(folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    (folder / "model.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        CLIP.from_pretrained(folder)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("key", ["visual_projection.weight", "text_projection.weight"])
def test_weights_that_are_not_finite_are_named(folders, tmp_path, key):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    weights[key][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    clip, image = CLIP.from_pretrained(folder), Image.new("RGB", (40, 30), "red")
    encode = {"visual_projection.weight": lambda: clip.encode_image(image), "text_projection.weight": None}[key]
    encode = encode or (lambda: clip.encode_text("a"))
    with pytest.raises(ValueError, match=rf"\w+ 0: its embedding is not finite: the weights {key} of .* are not"):
        encode()


def test_transformers_own_pipeline_reads_a_folder(tmp_path):
    """The probabilities are ours, for a CLIP of this package that transformers' pipeline loads by itself."""
    clip, labels, image = CLIP.from_pretrained("emoji"), ["a red apple", "a rocket"], Image.new("RGB", (64, 64), "red")
    clip.save_pretrained(tmp_path)
    found = pipeline("zero-shot-image-classification", model=str(tmp_path))(image, candidate_labels=labels)
    texts = clip.encode_text([f"This is a photo of {label}." for label in labels])
    expected = (clip.logit_scale.exp() * clip.encode_image(image) @ texts.T).softmax(-1)[0]
    assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in found} == dict(
        zip(labels, expected.tolist(), strict=True)
    )
