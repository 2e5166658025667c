"""``clip-guidance completion``: the script works in a real shell."""

import os
import shutil
import subprocess
import sys

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_the_program(cli, shell):
    done = cli("completion", shell)
    assert (done.code, done.err) == (0, "") and f"_CLIP_GUIDANCE_COMPLETE=complete_{shell}" in done.out


def test_another_shell_is_refused_by_name(cli):
    done = cli("completion", "tcsh")
    assert (done.code, done.out) == (2, "") and "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.err


@pytest.fixture
def shell(tmp_path):
    """Runs lines in a bash that knows the script, and the program by its name."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    program = tmp_path / "bin" / "clip-guidance"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from clip_guidance.cli.main import run; run()" "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(script: str) -> list[str]:
        done = subprocess.run(
            [bash, "--norc", "-euc", 'eval "$(clip-guidance completion bash)"\n' + script],
            capture_output=True, text=True, env=env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["sc"], {"score"}),
        (["data", ""], {"check"}),
        (["score", "--pro"], {"--prompt", "--prompts-file", "--prompt-column"}),
        (["score", "--dtype", "b"], {"bfloat16"}),
        (["classify", "--save"], {"--save-config"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_real_bash_completes(shell, typed, expected):
    words = " ".join(f"'{word}'" for word in ["clip-guidance", *typed])
    found = shell(
        f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _clip_guidance_completion clip-guidance\n"
        'printf "%s\\n" "${COMPREPLY[@]}"; complete -p clip-guidance >&2'
    )
    assert set(found) == expected
