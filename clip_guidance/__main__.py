"""Run the command line: ``python -m clip_guidance`` is ``clip-guidance``."""

from clip_guidance.cli.main import run

if __name__ == "__main__":
    run()
