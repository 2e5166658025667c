"""Two machines, simulated by two launchers on this one, the second of which may die.

    python tests/helpers/nodes.py AFTER PROGRAM ARGUMENTS...

runs a program, a path or a module, whose process and launcher are killed on the second machine after so many blocks of
images were scored or steps taken there; never where AFTER is 0.
"""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_guidance.metrics.job.store import ScoreStore
from clip_guidance.training import trainer
from helpers.index_helpers import free_port

TORCHRUN = ("-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", "{rank}")
TORCHRUN += ("--master-addr", "localhost", "--master-port", "{port}", "--nproc-per-node", "1")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2")
ACCELERATE += ("--machine_rank", "{rank}", "--main_process_ip", "localhost", "--main_process_port", "{port}")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no")


def on_two_nodes(
    program: str, words: Sequence[object], dies_after: int = 0, launcher: Sequence[str] = TORCHRUN
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program on both, and return what became of each; they are two processes of one job."""
    port, tests = free_port(), Path(__file__).resolve().parents[1]
    command = [*launcher, __file__, str(dies_after), program, *map(str, words)]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    started = [
        subprocess.Popen(
            [sys.executable, *(word.format(rank=rank, port=port) for word in command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in range(2)
    ]
    told = [each.communicate() for each in started]
    ended = zip(started, told, strict=True)
    return [subprocess.CompletedProcess(each.args, each.returncode, *said) for each, said in ended]


def then(method: Callable, after: int, act: Callable[[], object]) -> Callable:
    """Let something happen when a method has returned so many times."""
    calls = 0

    def counted(*arguments, **options):
        nonlocal calls
        result = method(*arguments, **options)
        calls += 1
        if calls == after:
            act()
        return result

    return counted


def _die() -> None:
    for process in (os.getppid(), os.getpid()):
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    after, program = int(sys.argv[1]), sys.argv[2]
    if os.environ["RANK"] == "1" and after:
        ScoreStore.put = then(ScoreStore.put, after, _die)
        trainer._Run.step = then(trainer._Run.step, after, _die)
    sys.argv = sys.argv[2:]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))  # as the interpreter does for a program
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__")
