"""What the steering benchmark shows: figures, comparisons at equal cost, and the table of the docs."""

import json

import pytest
import torch

pytestmark = pytest.mark.usefixtures("steering")  # its programs can be imported


def test_the_figure_shows_what_was_drawn_and_what_the_judge_says():
    import numpy as np
    from figure import Line, band, below, first_wrong

    colours = torch.tensor([[200, 0, 0], [0, 0, 200]], dtype=torch.uint8)
    images = [colour[None, :, None, None].expand(4, 3, 8, 8) for colour in colours]
    lines = [Line(f"m{i}", each, torch.tensor([1.0, 0.0, 1.0, 0.0])) for i, each in enumerate(images)]
    assert first_wrong(lines[0].right, 1) == [1] and first_wrong(lines[0].right, 3) == [1, 3]
    sheet = np.asarray(band(["a noto picture of a cat", "a dog"], [line.of([2, 3]) for line in lines]))
    for colour in colours.tolist():
        assert (sheet == colour).all(2).sum() == 2 * (88 - 12) ** 2  # every image of every method, once
    green = (sheet == (0x2A, 0x9D, 0x3A)).all(2)
    assert green[:, 104 : 104 + 88].any() and not green[:, 104 + 88 :].any()  # the second one is wrong
    both = np.asarray(below(*[band(["a dog"], [line.of([i])]) for i, line in enumerate(lines)]))
    assert all((both == colour).all(2).sum() == (88 - 12) ** 2 for colour in colours.tolist())


def test_the_nearest_training_image_stands_below_each_drawing_and_a_copy_is_framed():
    import numpy as np
    from copies import COLUMNS, sheet

    yellows = torch.arange(20, 20 * (COLUMNS + 2), 20, dtype=torch.uint8)  # text is grey
    drawn = torch.zeros(COLUMNS + 1, 3, 8, 8, dtype=torch.uint8)
    drawn[:, :2] = yellows[:, None, None, None]
    training = drawn.flip(0) + 3
    training[0] = 255  # where the last one's copy was: what is nearest to it now is farther than a copy
    shown = np.asarray(sheet(["a dog"] * len(drawn), drawn, training))
    above = [(shown == (value, value, 0)).all(2) for value in yellows.tolist()]
    under = [(shown == (value + 3, value + 3, 3)).all(2) for value in yellows.tolist()]
    size = (88 - 12) ** 2  # of an image in the figure
    assert [each.sum() for each in above] == [size] * (COLUMNS + 1)
    assert [each.sum() for each in under] == [size] * (COLUMNS - 1) + [2 * size, 0]  # the last one's is the tenth's
    assert all((np.roll(one, 88, 0) == other).all() for one, other in zip(above[:-2], under, strict=False))
    frame = (88 - 3) ** 2 - (88 - 9) ** 2  # of the two of a copy; that of the last is gone
    assert (shown == (0x2A, 0x9D, 0x3A)).all(2).sum() == 2 * COLUMNS * frame


def test_a_method_is_compared_with_what_costs_as_much_and_was_named_before():
    """Not with the best of ours: "best of 2" is right more often, and dearer than what is compared."""
    from drawing import Method
    from judging import Judgement
    from report import Result, duels

    from clip_guidance.metrics.statistics import Interval

    def result(family, seconds, right, name=""):
        said = dict(rank=1.0, precision=1.0, recall=1.0, nearest=0.1, copied=0.0, guide=None)
        verdicts = torch.tensor(right, dtype=torch.float64)
        top1 = Interval(verdicts.mean().item(), 0.0, 1.0)
        said |= dict(kernel_distance=Interval(seconds, 0, 1), named=top1, named_right=1 - verdicts)
        judged = Judgement(count=4, top1=top1, right=verdicts, **said)
        return Result(Method(family, name), judged, {"seconds": seconds})

    results = [
        result("plain", 0.2, [0, 0, 0, 0]),
        result("paper", 1.0, [1, 0, 0, 0]),
        result("ours", 0.5, [1, 1, 0, 0], "1"),
        result("ours", 0.5, [1, 1, 1, 1], "another strength"),
        result("ours", 1.04, [1, 0, 0, 0], "2"),
        result("ours", 2.0, [1, 1, 1, 1], "3"),
    ]
    lines = duels(results, ["ours, 1", "ours, 2", "ours, 3"]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(row[0], row[2]) for row in cells] == [
        ("paper", "ours, 2"),
        ("ours, another strength", "ours, 1"),
    ]  # none of ours costs as little as "plain"
    assert cells[0][4].startswith("+0.0 (+0.0 to +0.0)") and cells[1][4].startswith("-50.0") and cells[0][6] == "+0.040"
    assert cells[1][5].startswith("+50.0")  # of all names, here the opposite


def test_a_page_gets_the_table_between_its_markers():
    from readme import BEGIN, END, filled

    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    entry = {"title": "CFG, 3", "top1": interval, "kernel_distance": interval, "rank": 2, "recall": 0.25, "count": 7}
    entry["named"] = None  # of prompts that no real image has
    report = {"held-out": [entry | {"cost": {}}, entry | {"cost": {"seconds": 1.5}, "named": interval}]}
    page = filled(f"before {BEGIN} old {END} after", report)
    assert page.startswith(f"before {BEGIN}\n7 prompts per row") and page.endswith(f"{END} after") and "old" not in page
    assert "| CFG, 3 | 50.0 (40–60) | 50.0 (40–60) | 2.0 | 0.500 (0.400–0.600) | 0.25 | 1.50 |" in page
    assert "| CFG, 3 | 50.0 (40–60) |  | 2.0 |" in page
    assert filled(page, report) == page
    with pytest.raises(ValueError, match="expected one <!-- steering: begin -->.*got 0 and 0"):
        filled("nothing", report)


def test_the_page_says_what_the_report_says(root):
    from readme import filled

    report = json.loads((root / "benchmarks" / "steering" / "results" / "report.json").read_text())
    page = (root / "docs" / "results" / "steering.md").read_text()
    assert filled(page, report) == page
