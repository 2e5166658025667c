"""Score a table of images that grows, every night: only what is new is computed, and a kill loses nothing.

    python examples/score_nightly.py images.csv scores.jsonl

The table (.csv, .tsv, .jsonl or .parquet) has a column ``image`` and a column ``prompt``. The exit code is 1 if a row
cannot be read: it is named, and the others are scored. ``clip-guidance score --resume`` does the same from a shell.
"""

import argparse
import sys
from pathlib import Path

import clip_guidance as cg
from clip_guidance.metrics.job.items import check_table, read_items
from clip_guidance.metrics.job.judge import make_judge
from clip_guidance.metrics.job.processes import find_processes
from clip_guidance.metrics.job.results import read_scores
from clip_guidance.metrics.job.run import Job, Options, score_items
from clip_guidance.metrics.job.tables import check_output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="table of images and prompts")
    parser.add_argument("scores", type=Path, help="file of scores: .jsonl, .csv or .parquet; added to if it is there")
    parser.add_argument("--model", default="emoji-judge", help="CLIP: a packaged name, a folder, or a hub id")
    parser.add_argument("--definition", default="torchmetrics", help="definition of the score")
    parser.add_argument("--device", help="where the model is put, such as cuda")
    args = parser.parse_args()

    check_table(args.table)
    check_output(args.scores)
    processes = find_processes(args.device)  # several under torchrun: they share the images
    judge = make_judge(cg.CLIP.from_pretrained(args.model, device=processes.device), [args.definition])
    job, failures = Job(args.scores, processes), []
    with job.locked():  # so that last night's run, if it is still at work, is not disturbed
        job.check(resume=True)
        job.begin([judge])
        for progress in score_items(read_items([args.table]), [judge], job, Options()):
            failures += progress.failures
        job.finish()
        if processes.rank == 0:
            job.write()
            job.clear()
    for failure in failures:
        print(f"{failure.image}: {failure.reason}", file=sys.stderr)
    if processes.rank == 0:
        for found in read_scores(args.scores):
            values = found.scores(on="image").values()
            print(f"{found}: mean {sum(values) / len(values):.2f} of {len(values)} images")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
