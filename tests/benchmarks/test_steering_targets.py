"""The benchmark of targets: which rows it pairs, how halves are judged, and that it runs."""

from types import SimpleNamespace

import pytest
import torch

from clip_guidance.data.dataset import Row
from clip_guidance.training.settings import parse_settings

pytestmark = pytest.mark.usefixtures("steering")  # its programs can be imported


@pytest.mark.parametrize("same_style", [False, True])
def test_no_row_is_in_two_pairs_and_tuning_shares_none(same_style):
    import targets

    rows = [Row(f"n{i % 400}", ["noto", "blob"][i % 2], ()) for i in range(700)]
    found = {
        tuning: targets.pairs(rows, targets.Settings(count=1000, tuning=tuning), same_style) for tuning in (False, True)
    }
    numbers = [number for pairs in found.values() for pair in pairs for number in (pair.first, pair.second)]
    assert len(set(numbers)) == len(numbers) and len(found[False]) > 200 and len(found[True]) > 80
    for pair in found[False] + found[True]:
        assert rows[pair.first].name != rows[pair.second].name
        assert not same_style or rows[pair.first].style == rows[pair.second].style


def test_each_half_is_judged_alone():
    import targets

    texts = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 0.0, 1.0]}
    judge = SimpleNamespace(
        encode_text=lambda names: torch.tensor([texts[name] for name in names]),
        encode_image=lambda images: images.mean((2, 3)),
    )
    images = torch.zeros(3, 3, 8, 8)
    for number, (left, right) in enumerate([("red", "blue"), ("blue", "blue"), ("blue", "red")]):
        images[number, ..., :4] = torch.tensor(texts[left])[:, None, None]
        images[number, ..., 4:] = torch.tensor(texts[right])[:, None, None]
    left, right = targets.right_halves(judge, images, [("red", "blue")] * 3)
    assert left.tolist() == [True, False, False] and right.tolist() == [True, True, False]


@pytest.mark.slow
def test_the_program_runs(shared_data, tmp_path, capsys):
    import targets

    held_out = str(shared_data / "emoji64-val.parquet")
    argv = ["--held_out", held_out, "--output", str(tmp_path), "--count", "2", "--steps", "1"]
    targets.main(parse_settings(targets.Settings, argv))
    printed = capsys.readouterr().out
    for name, lines in (("images", 1), ("regions", 2)):
        text = (tmp_path / f"targets-{name}.md").read_text()
        assert text in printed and text.count("\n| ") == 2 + lines
        assert (tmp_path / "sheets" / f"targets-{name}.png").is_file()
