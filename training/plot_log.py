"""Plot the log of a training program.

python training/plot_log.py runs/emoji-clip/log.jsonl log.png
"""

import sys

from clip_guidance.training.log import plot_log

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    plot_log(*sys.argv[1:])
