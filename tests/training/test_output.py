"""What a training run refuses before it begins, in a sentence: its data, its batch, its output folder."""

import json
import subprocess
import sys

import pytest
from accelerate import Accelerator
from helpers.corpus import number
from helpers.tables import write_table

from clip_guidance.clip import CLIP
from clip_guidance.training.output import LOCK, OutputError, locked_output
from clip_guidance.training.tower_settings import TowerSettings
from clip_guidance.training.vocabulary import check_captions

HOLDER = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(train_clip, tmp_path):
    def run(data, output="run", **options):
        small = {"image_size": 16, "image_width": 32, "image_layers": 1, "text_width": 32, "text_layers": 1, "steps": 1}
        small |= {"batch_size": 2, "vocab_size": 520, "context_length": 24, "projection_dim": 8, "warmup": 0}
        small |= {"data": [str(data)], "output": str(tmp_path / output), "workers": 0, **options}
        train_clip.main(train_clip.Settings(**small))
        return tmp_path / output

    return run


def captioned(folder, captions):
    folder.mkdir(parents=True)
    for i, caption in enumerate(captions):
        (folder / f"{i}.png").write_bytes(number(i))
        (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_captions_that_are_all_the_same_are_refused(run, tmp_path, streaming):
    data = captioned(tmp_path / "data", ["a thing"] * 4)
    with pytest.raises(
        SystemExit, match=r"data: all captions are 'a thing': there is nothing to learn; `clip-guid"
    ):
        run(data, streaming=streaming)


def test_no_more_captions_are_read_than_it_takes():
    texts = iter(["a", "a", "b", "c"])
    check_captions(texts, "here")
    assert list(texts) == ["c"]
    check_captions([], "here")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_batch_larger_than_the_data_is_refused_in_both_modes(run, tmp_path, streaming):
    data = captioned(tmp_path / "data", ["a cat", "a dog", "a bus"])
    with pytest.raises(SystemExit, match="^batch_size 4 exceeds the 3 samples there are$"):
        run(data, streaming=streaming, batch_size=4)
    run(data, streaming=streaming, batch_size=3, steps=3)  # one batch per epoch


def test_two_runs_do_not_share_an_output(run, tmp_path):
    """The lock of a process that was killed does not hold."""
    data = captioned(tmp_path / "data", ["a cat", "a dog"])
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run" / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SystemExit, match="run: another run is training in it; give this one another --output$"):
            run(data)
        holder.kill()
    assert len(CLIP.from_pretrained(run(data)).encode_text(["a cat"])) == 1


def test_the_lock_is_let_go_when_the_block_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked_output(tmp_path, Accelerator(cpu=True)):
            raise KeyError


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_that_is_refused_leaves_no_folder_of_its_own(run, tmp_path, exists):
    if exists:
        (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit, match="absent"):
        run(tmp_path / "absent")
    assert (tmp_path / "run").exists() == exists


def test_a_run_that_wrote_keeps_its_folder(tmp_path):
    with pytest.raises(KeyError), locked_output(tmp_path / "run", Accelerator(cpu=True)):
        (tmp_path / "run" / "log.jsonl").write_text("")
        raise KeyError
    assert (tmp_path / "run" / "log.jsonl").exists()


def test_an_output_that_cannot_be_written_is_named(run, tmp_path):
    data = captioned(tmp_path / "data", ["a cat", "a dog"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file/run: the output cannot be written: Not a directory$"):
        run(data, "file/run")
    with (
        pytest.raises(OutputError, match="the output cannot be written"),
        locked_output("/proc/x", Accelerator(cpu=True)),
    ):
        pass


@pytest.mark.parametrize("damage", ["", '{"model": 7}'])
def test_a_damaged_vocabulary_is_named_and_learnt_again(run, tmp_path, damage):
    data = captioned(tmp_path / "data", ["a cat", "a dog"])
    folder = run(data)
    good = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").write_text(damage)
    with pytest.raises(SystemExit, match=r"tokenizer.json: is damaged \(.*\); delete it, and the same vocabulary is"):
        run(data)
    (folder / "tokenizer.json").unlink()
    run(data)
    assert json.loads((folder / "tokenizer.json").read_text())["model"] == good


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (32, 1), (100, 2), (192, 6), (50, 1), (97, 1), (160, 5)])
def test_any_width_has_heads_that_divide_it(width, heads):
    settings = TowerSettings(image_width=width)
    assert settings.image_config().num_attention_heads == heads


def test_the_card_says_how_many_of_what_and_what_chance_gives(run, tmp_path):
    data = captioned(tmp_path / "data", ["a cat", "a dog", "a bus"])
    held_out = captioned(tmp_path / "unseen", ["a red cat", "a red dog", "a red bus", "a red cat"])
    card = (run(data, validation=str(held_out), retrieval_data=str(held_out)) / "README.md").read_text()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert f"| R@1 | {100 * log[-1]['R@1']:.1f} % | 33 % | 4 of unseen |" in card
    assert "| retrieval_image_R@1 | " in card and "| 33 % | 3 of unseen |" in card  # two, one and one of four right


def test_names_keep_their_templates_and_a_table_of_names_trains(run, tmp_path):
    table = write_table(tmp_path / "t.parquet", ["cat", "dog", "bus"], size=16)
    card = (run(table, validation=str(table)) / "README.md").read_text()
    assert "| 33 % | 3 of t.parquet |" in card
