"""A stream of tars and a table."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.factories import make_clip
from helpers.stream_rows import encoded


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three tars of ten rows and a parquet table of thirty, one of whose images is broken."""
    folder = tmp_path_factory.mktemp("stream")
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for i in range(10 * shard, 10 * shard + 10):
                for name, content in ((f"{i:03}.png", encoded(i)), (f"{i:03}.txt", f"left {i}\nthing {i}".encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    rows = {"image": [encoded(i) for i in range(30, 60)], "caption": [f"thing {i}" for i in range(30, 60)]}
    pq.write_table(pa.table(rows), folder / "rows.parquet", row_group_size=8)
    return [f"{folder}/{{0..2}}.tar", str(folder / "rows.parquet")]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    make_clip().save_pretrained(folder)
    return str(folder)
