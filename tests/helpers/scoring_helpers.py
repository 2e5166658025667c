"""What several scoring tests need."""

from pathlib import Path

from clip_guidance.metrics.job.items import read_items
from clip_guidance.metrics.job.judge import make_judge
from clip_guidance.metrics.job.processes import Processes
from clip_guidance.metrics.job.run import Job, Options, score_items


def count_calls(monkeypatch, owner, name: str) -> list[tuple]:
    """The arguments of all calls from now on."""
    calls, original = [], getattr(owner, name)

    def counting(self, *args, **kwargs):
        calls.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


def judges_of(*clips, scores=("torchmetrics",), **options):
    return [make_judge(clip, scores, **options) for clip in clips]


def score_all(output: Path, folder, judges, prompt="a cat", processes: int = 1, batch_size: int = 4, **options):
    """Scores a folder, process after process, and writes the output; gives all that was done."""
    shares = [Job(output, Processes(rank, processes)) for rank in range(processes)]
    done = []
    for work in shares:
        work.begin(judges)
        done += score_items(read_items([folder], prompt), judges, work, Options(batch_size, threads=2, **options))
    for work in shares:
        work.finish()
    shares[0].write()
    shares[0].clear()
    return done
