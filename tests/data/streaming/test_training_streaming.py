"""Training from a stream: resumed bit for bit after a kill, shared among processes, in bounded memory."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.stream_rows import BROKEN, ROWS
from safetensors.torch import load_file
from torch import nn

from clip_guidance.clip import CLIP
from clip_guidance.data import TooManyBadRows, open_pairs
from clip_guidance.training.batches import StreamedBatches, ToSquare
from clip_guidance.training.checkpoints import CheckpointError
from clip_guidance.training.log import read_log
from clip_guidance.training.trainer import Plan, fit

# Killed and resumed


def command(root, data, known, output, processes, workers, steps=60):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    program = [*(launch if processes > 1 else []), str(root / "training" / "train_clip.py")]
    options = {"init": known, "output": output, "image_size": 32, "batch_size": 4, "steps": steps, "warmup": 2}
    options |= {"streaming": True, "shuffle_buffer": 7, "workers": workers, "random_flip": True, "log_every": 1}
    options |= {"save_every": 4, "ema_decay": 0.9, "seed": 5}
    return [sys.executable, *program, "--data", *data, *(f"--{k}={v}" for k, v in options.items())]


def killed(words, output, at):
    """Ends the launch without a warning as soon as the checkpoint of a step is there."""
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (output / "checkpoints" / f"step-{at}.safetensors").is_file():
            assert run.poll() is None, "it ended before the checkpoint was there"
            time.sleep(0.001)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_stream_goes_on_bit_for_bit(processes, root, data, known, tmp_path):
    """With another number of threads too; 60 steps go round the 60 rows four times, or eight."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(command(root, data, known, whole, processes, 3), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    killed(command(root, data, known, broken, processes, 2), broken, at=12)
    assert not (broken / "checkpoints" / "step-60.safetensors").exists()
    done = subprocess.run(command(root, data, known, broken, processes, 4), capture_output=True, text=True)
    assert done.returncode == 0 and "Exception ignored" not in done.stderr, done.stderr
    expected, found = (load_file(folder / "checkpoints" / "step-60.safetensors") for folder in (whole, broken))
    assert expected.keys() == found.keys() and all(value.equal(found[key]) for key, value in expected.items())
    logs = [[{**row, "seconds": 0} for row in read_log(folder / "log.jsonl")] for folder in (whole, broken)]
    assert logs[0] == logs[1] and len(logs[0]) == 60
    assert len({row["loss"] for row in logs[0]}) == 60  # it trained on different batches
    names = [path.name for path in whole.glob("quarantine*.jsonl")]
    listed = [json.loads(line) for name in names for line in (whole / name).read_text().splitlines()]
    assert len(names) == processes and [line["key"] for line in listed] == [f"{BROKEN:03}"]
    assert CLIP.from_pretrained(broken).encode_text("thing 3").equal(CLIP.from_pretrained(whole).encode_text("thing 3"))


# The batches


class Process:
    def __init__(self, index=0, count=1):
        self.process_index, self.num_processes = index, count


def streamed(data, batch_size=4, index=0, count=1, transform=None, **options):
    options = {"seed": 3, "shuffle_buffer": 7, "shard": (index, count), **options}
    pairs = open_pairs(data, transform=transform or ToSquare(32), **options)
    return StreamedBatches(pairs, batch_size, 3, Process(index, count), random_flip=True)


def same(one, other):
    return one.images.equal(other.images) and one.captions == other.captions and one.described == other.described


@pytest.mark.slow
def test_a_state_after_any_step_goes_on_with_the_next_batch(data):
    whole = streamed(data)
    states, expected = [], []
    for step in range(40):
        states.append(json.loads(json.dumps(whole.state_dict())))
        expected.append(whole(step))
    for start in (0, 1, 13, 14, 15, 16, 29, 39):
        resumed = streamed(data, workers=start % 3)
        resumed.load_state_dict(states[start])
        assert all(same(resumed(step), expected[step]) for step in range(start, 40))


def test_images_are_those_of_the_rows_and_some_are_mirrored(data):
    """A caption with "left" in it forbids to mirror, whichever caption was drawn."""
    batches, seen = streamed(data), []
    for step in range(30):
        batch = batches(step)
        for image, name, mirrored in zip(batch.images, batch.captions, batch.described["mirrored"], strict=True):
            number = int(name.split()[1])
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            expected = torch.tensor(pixels).permute(2, 0, 1) / 255
            assert image.equal(expected.flip(-1) if mirrored else expected)
            seen.append((number, mirrored))
    assert not any(mirrored for number, mirrored in seen if number < 30)
    assert 0.3 < np.mean([mirrored for number, mirrored in seen if number >= 30]) < 0.7
    assert {number for number, _ in seen} == set(range(ROWS)) - {BROKEN}


def test_processes_share_the_rows(data):
    """Of an epoch each row comes once, whoever has it."""
    shares = [open_pairs(data, shard=(i, 3), seed=3, shuffle_buffer=7) for i in range(3)]
    captions = [pair.captions[-1] for share in shares for pair in share]
    assert sorted(captions) == sorted(f"thing {i}" for i in range(ROWS) if i != BROKEN)
    assert streamed(data, index=1, count=3).global_batch_size == 12 and streamed(data, index=1, count=3).first == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "ahead", "held"), [pytest.param(0, None, 0, marks=pytest.mark.slow), (3, None, 6), (1, 8, 8)]
)
def test_no_more_images_are_held_than_a_batch_and_those_under_way(data, workers, ahead, held):
    alive, most = weakref.WeakSet(), 0

    class Watched(ToSquare):
        def __call__(self, image):
            nonlocal most
            made = super().__call__(image)
            alive.add(made)
            most = max(most, len(alive))
            return made

    batches = streamed(data, transform=Watched(32), workers=workers, ahead=ahead)
    gc.collect()
    for step in range(60):  # four epochs
        batches(step)
    assert 4 <= most <= 4 + held + 1


def test_the_next_batch_is_read_while_one_is_trained_on(data):
    made = []

    def transform(image):
        made.append(1)
        return ToSquare(32)(image)

    batches = streamed(data, transform=transform, workers=1, ahead=4)
    batches(0)
    deadline = time.monotonic() + 60
    while len(made) < 7 and time.monotonic() < deadline:  # of four handed out three more are under way
        time.sleep(0.01)
    assert len(made) == 7
    batches.close()


def test_a_closed_stream_has_no_thread_left_and_goes_on(data):
    whole, broken, before = streamed(data), streamed(data, workers=3), threading.active_count()
    for step in range(9):
        one, other = whole(step), broken(step)
        assert same(one, other)
        if step == 4:
            assert threading.active_count() > before
            broken.close()
            assert threading.active_count() == before
    broken.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_excluded_rows_are_passed_over_and_are_not_bad(workers, data):
    """The rows of the tars are called "left ...", the broken one among them; resumed it goes on as it would have."""
    batches, states, expected = streamed(data, exclude="left", workers=workers), [], []
    for step in range(20):
        states.append(json.loads(json.dumps(batches.state_dict())))
        expected.append(batches(step))
    drawn = {caption for batch in expected for caption in batch.captions}
    assert drawn == {f"thing {i}" for i in range(30, 60)} and batches.pairs.counters.bad_share == 0
    assert batches.pairs.counters.rows + batches.pairs.counters.excluded <= ROWS
    assert {text for texts in batches.pairs.captions() for text in texts} == drawn  # the vocabulary too
    resumed = streamed(data, exclude="left")
    resumed.load_state_dict(states[9])
    assert all(same(resumed(step), expected[step]) for step in range(9, 20))
    batches.close()


def test_what_is_excluded_changes_no_count_of_bad_rows(data):
    pairs = open_pairs(data, exclude="thing 1", seed=3)  # ten rows of the teens and row 1, one of the former broken
    assert len(list(pairs)) == ROWS - 11
    assert (pairs.counters.rows, pairs.counters.excluded, pairs.counters.bad.total()) == (ROWS - 11, 11, 0)
    pairs = open_pairs(data, exclude="thing 2", seed=3)  # eleven others
    assert len(list(pairs)) == ROWS - 12 and pairs.counters.bad_share == 1 / (ROWS - 11)
    with pytest.raises(TooManyBadRows, match="there is no row to read; all 60 are excluded"):
        list(open_pairs(data, exclude="thing"))
    with pytest.raises(ValueError, match="exclude is 'left' here and None in the state"):
        streamed(data, exclude="left").load_state_dict(streamed(data).state_dict())


def test_a_stream_goes_forward_only(data):
    batches = streamed(data)
    batches(0)
    with pytest.raises(ValueError, match="a stream goes forward: expected step 1, was asked for 0"):
        batches(0)


# Checkpoints


def small_fit(folder, stream, steps=3):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(model, step):
        images = torch.rand(4, 3, 8, 8) if stream is None else stream(step).images
        return {"loss": model(images.mean((2, 3))).square().mean()}

    fit(Accelerator(cpu=True), model, loss, Plan(steps, 0.1, 0, 0.0, 1.0, 3, 1, 1), folder, stream=stream)


def test_places_that_do_not_fit_are_refused(data, tmp_path):
    small_fit(tmp_path / "stream", streamed(data))
    with pytest.raises(ValueError, match="state is of another order: shuffle_buffer is 9 here and 7 in the state"):
        small_fit(tmp_path / "stream", streamed(data, shuffle_buffer=9), steps=4)
    with pytest.raises(ValueError, match="state is of another order: parts is"):
        small_fit(tmp_path / "stream", streamed(data[:1]), steps=4)
    small_fit(tmp_path / "memory", None)
    with pytest.raises(
        CheckpointError, match=r"step-3.safetensors: expected the stream positions of 1 processes, found none"
    ):
        small_fit(tmp_path / "memory", streamed(data), steps=4)


def test_another_number_of_processes_is_refused(tmp_path):
    from clip_guidance.training.checkpoints import Checkpoints

    model = nn.Linear(2, 1)
    Checkpoints(tmp_path).save(1, {"model": model}, torch.optim.AdamW(model.parameters()), [{"row": 1}, {"row": 2}])
    found = Checkpoints(tmp_path)
    assert found.load_weights({"model": model}) == 1 and found.stream_position(1, 2) == {"row": 2}
    with pytest.raises(CheckpointError, match="expected the stream positions of 3 processes, found those of 2"):
        found.stream_position(0, 3)
