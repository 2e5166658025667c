"""What ``generate`` prints of its images."""

from clip_guidance.cli._generate_output import print_images


def row(seed, **further):
    score = {"definition": "torchmetrics", "model": "emoji", "score": 60.0}
    return {"image": f"{seed}.png", "settings": {"prompt": "a cat", "seed": seed}, "scores": [score], **further}


def test_a_calibrated_strength_has_a_column_where_there_is_one(capsys):
    print_images([row(0, calibrated_scale=7.25), row(1)], json=False)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split("\t")[3] == "calibrated_scale" and first.split("\t")[3] == "7.2500"
    assert second.split("\t")[3] == ""
    print_images([row(1)], json=False)
    assert "calibrated" not in capsys.readouterr().out
