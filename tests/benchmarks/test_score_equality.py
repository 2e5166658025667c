"""The benchmark of equal scores: that it runs, finds them equal, and tells when they are not."""

import pytest

from clip_guidance.training.settings import parse_settings


@pytest.fixture
def program(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import score_equality

    return score_equality


@pytest.mark.slow
def test_our_scores_are_those_of_transformers_by_hand(program, shared_data, tmp_path):
    output = tmp_path / "equality.md"
    argv = [
        "--data",
        str(shared_data / "grocery64.parquet"),
        "--size",
        "tiny",
        "--images",
        "6",
        "--output",
        str(output),
    ]
    program.main(parse_settings(program.Settings, argv))
    rows = [line.strip("| ").split(" | ") for line in output.read_text().splitlines() if line.startswith("| ")][2:]
    by_hand = {row[0]: float(row[2]) for row in rows if row[1].startswith("transformers")}
    assert {"cosine", "torchmetrics", "hessel", "clip-iqa:quality, of 100 · cos"} < by_hand.keys()
    assert max(by_hand.values()) < 1e-6
    least, most = output.read_text().split("cosines from ")[1].split(".\n")[0].split(" to ")
    assert float(least) < 0 < float(most)  # both sides of the clipping
    with pytest.raises(SystemExit, match="cosine: differs from transformers .*, cosine by hand by .* > -1"):
        program.main(parse_settings(program.Settings, [*argv, "--tolerance", "-1"]))


def test_every_row_tells_its_own_difference(program, tmp_path):
    """Peers that are wrong in one number each are found out, in that row and by that much."""
    from PIL import Image

    from clip_guidance.clip import CLIP
    from clip_guidance.metrics.clip_score import clip_score

    images = [str(tmp_path / f"{shade}.png") for shade in (0, 200)]
    for path, shade in zip(images, (0, 200), strict=True):
        Image.new("RGB", (40, 40), (shade, 90, 255 - shade)).save(path)
    request = {"images": images, "prompts": ["a cat", "an apple"], "long_prompts": ["cat " * 40, "apple " * 40]}
    clip = CLIP.from_pretrained(program.make_clip(tmp_path / "clip", "tiny"))
    with pytest.warns(UserWarning, match="cut to the context"):
        long = clip_score(clip, images, request["long_prompts"], "cosine").tolist()
    cosines = clip_score(clip, images, request["prompts"], "cosine").tolist()
    prefixed = clip_score(clip, images, [f"A photo depicts {text}" for text in request["prompts"]], "cosine").tolist()
    pair = (clip.encode_image(images) @ clip.encode_text(["Good photo.", "Bad photo."]).T).tolist()
    mean = max(100 * sum(cosines) / 2, 0)
    each = [max(100 * cosine, 0) for cosine in cosines]
    hand = {"version": "5", "prompts": cosines, "prefixed": prefixed, "long": long, "pair": pair}
    metrics = {"version": "1", "error": None, "released": mean + 2, "mean": mean + 3, "each": each, "long": [0.0, 0.0]}

    rows, spread = program.compare(clip, request, {"transformers": hand, "torchmetrics": metrics})
    found = [row.difference for row in rows]
    assert found[:5] == pytest.approx([0] * 5, abs=1e-6) and spread == pytest.approx((min(cosines), max(cosines)))
    assert found[5:8] == pytest.approx([0.02, 0.03, 0], abs=1e-6) and found[8] is None
    assert f"up to {max(0, *long):.1e} apart" in rows[8].note

    hand["prompts"] = [cosines[0], cosines[1] + 0.25]
    broken = {"version": "1", "error": "AttributeError: norm", "mean": mean, "each": each, "long": [0.0, 0.0]}
    rows, _ = program.compare(clip, request, {"transformers": hand, "torchmetrics": broken})
    assert [row.difference for row in rows[:2]] == pytest.approx([0.25, 0.25], abs=1e-6)
    assert rows[5].difference is None and rows[5].note == "it fails: AttributeError: norm"
