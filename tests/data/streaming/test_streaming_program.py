"""What train_clip.py does with a stream: vocabulary, Hub data sets, bad rows, options that do not go together."""

import json

import pytest

from clip_guidance.clip import CLIP
from clip_guidance.data.sources import hub
from clip_guidance.training.log import read_log


@pytest.fixture
def settings(train_clip, data, tmp_path):
    sizes = {"image_size": 32, "image_width": 32, "image_layers": 1, "text_width": 32, "text_layers": 1}
    small = sizes | {"batch_size": 4, "vocab_size": 600, "context_length": 12, "log_every": 1, "steps": 3, "warmup": 0}
    small |= {"data": data, "projection_dim": 16, "output": str(tmp_path), "streaming": True, "shuffle_buffer": 5}
    return lambda **options: train_clip.Settings(**{**small, **options})


def test_the_vocabulary_is_learnt_from_the_first_captions(train_clip, settings, tmp_path):
    train_clip.main(settings(vocabulary_rows=40))
    clip = CLIP.from_pretrained(tmp_path)
    assert clip.tokenizer.tokenize("thing") == ["thing</w>"] and len(clip.tokenizer.tokenize("zebra")) > 1
    assert next(row["bad_share"] for row in read_log(tmp_path / "log.jsonl")) == 0


def test_a_data_set_of_the_hub_is_streamed(train_clip, settings, data, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    asked = []

    def load(module, name, split, streaming):
        asked.append((name, split, streaming))
        return module.load_dataset("parquet", data_files=data[1], split=split, streaming=streaming)

    monkeypatch.setattr(hub, "_load", load)
    train_clip.main(settings(data=["someone/things"]))
    assert set(asked) == {("someone/things", "train", True)}
    assert len(read_log(tmp_path / "log.jsonl")) == 3


def test_too_many_bad_rows_end_the_run_and_are_listed(train_clip, settings, tmp_path):
    with pytest.raises(SystemExit, match=r"1 of 60 rows are bad \(1.7%, more than max_bad_share=1.0%\): 1 corrupt"):
        train_clip.main(settings(steps=40, max_bad_share=0.01))
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "corrupt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"freeze_image": True, "init": "x"},
            "images are not kept, so it cannot be combined with --freeze_image",
        ),
        ({"data": ["none.tar"]}, "none.tar: there is no such file or folder; supported are"),
        ({"shuffle_buffer": -1}, "expected shuffle_buffer and workers of at least 0, got -1 and 4"),
    ],
)
def test_what_a_stream_cannot_do_is_named(options, message, train_clip, settings):
    with pytest.raises(SystemExit, match=message):
        train_clip.main(settings(**options))
