"""Write a share of a table of images, for a judge that shares less with the guide than the packaged one does.

    python benchmarks/steering/split.py ../shared/data/emoji64-train.parquet runs/two-thirds.parquet 0.667 11
"""

from __future__ import annotations

import random
import sys

import pyarrow.parquet


def chosen(count: int, share: float, seed: int) -> list[int]:
    """Return the numbers of the rows that are kept, in the order of the table."""
    return sorted(random.Random(seed).sample(range(count), round(share * count)))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    table = pyarrow.parquet.read_table(sys.argv[1])
    pyarrow.parquet.write_table(table.take(chosen(len(table), float(sys.argv[3]), int(sys.argv[4]))), sys.argv[2])
