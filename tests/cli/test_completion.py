"""``clip-guidance completion``: the script works in a real shell."""

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import threading
import time

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_the_program(cli, shell):
    done = cli("completion", shell)
    assert (done.code, done.err) == (0, "") and f"_CLIP_GUIDANCE_COMPLETE=complete_{shell}" in done.out


def test_another_shell_is_refused_by_name(cli):
    done = cli("completion", "tcsh")
    assert (done.code, done.out) == (2, "") and "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.err


@pytest.fixture
def environment(tmp_path):
    """The environment of a shell that knows the program by its name."""
    program = tmp_path / "bin" / "clip-guidance"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from clip_guidance.cli.main import run; run()" "$@"\n')
    program.chmod(0o755)
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "TERM": "dumb"}
    return {**os.environ, **home, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def found_program(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"needs {name}")


def lines_of(command: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TYPED = [
    (["sc"], {"score"}),
    (["data", ""], {"check"}),
    (["score", "--pro"], {"--prompt", "--prompts-file", "--prompt-column"}),
    (["score", "--dtype", "b"], {"bfloat16"}),
    (["classify", "--save"], {"--save-config"}),
]
typed_words = pytest.mark.parametrize(
    ("typed", "expected"), TYPED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)


@pytest.mark.slow
@typed_words
def test_a_real_bash_completes(environment, typed, expected):
    words = " ".join(f"'{word}'" for word in ["clip-guidance", *typed])
    script = (
        'eval "$(clip-guidance completion bash)"\n'
        f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _clip_guidance_completion clip-guidance\n"
        'printf "%s\\n" "${COMPREPLY[@]}"; complete -p clip-guidance >&2'
    )
    assert set(lines_of([found_program("bash"), "--norc", "-euc", script], environment)) == expected


@pytest.mark.slow
@typed_words
def test_a_real_fish_completes(environment, typed, expected):
    line = " ".join(["clip-guidance", *typed])
    script = f"clip-guidance completion fish | source; complete --do-complete '{line}'"
    found = lines_of([found_program("fish"), "--no-config", "-c", script], environment)
    assert {each.split("\t")[0] for each in found} == expected


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "expected"), [case for case in TYPED if len(case[1]) == 1])
def test_a_real_zsh_completes(environment, tmp_path, typed, expected):
    line, shown, ready = " ".join(["clip-guidance", *typed]), tmp_path / "shown", tmp_path / "ready"
    start = (
        'PS1=; bindkey -e; autoload -Uz compinit; compinit -u -D; eval "$(clip-guidance completion zsh)"; '
        f"show() {{ print -r -- $BUFFER > {shown} }}; zle -N show; bindkey '^Xp' show; touch {ready}\n"
    )
    own, other = pty.openpty()  # completion is a part of zsh's line editor, which wants a terminal
    with subprocess.Popen(
        [found_program("zsh"), "-f", "-i"], stdin=other, stdout=other, stderr=other, env=environment
    ) as zsh:
        os.close(other)
        reader = threading.Thread(target=drain, args=(own,), daemon=True)
        reader.start()
        os.write(own, start.encode())
        assert wait_for(ready.exists)
        os.write(own, f"{line}\t\x18p".encode())  # the keys that follow the tabulator wait until it has completed
        assert wait_for(lambda: shown.exists() and shown.read_text())
        zsh.kill()
    os.close(own)
    assert shown.read_text().split() == ["clip-guidance", *typed[:-1], *expected]


def drain(terminal: int) -> None:
    with contextlib.suppress(OSError):  # how a terminal ends
        while os.read(terminal, 4096):
            pass


def wait_for(happened, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(happened())
