"""Small tables of images and names."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def write_table(path, names=("cat", "dog"), broken=(), drop=(), size=8):
    def encoded(i):
        buffer = io.BytesIO()
        Image.fromarray(np.full((size, size, 3), 30 * i, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()[: 30 if i in broken else None]

    columns = {
        "image": [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(len(names))],
        "name": list(names),
        "style": ["noto"] * len(names),
        "keywords": [["animal", "pet"]] * len(names),
    }
    pq.write_table(pa.table({k: v for k, v in columns.items() if k not in drop}), path)
    return path
