"""Scores of one image or a million: streamed, resumable, shared among processes.

work        images, folders, tables and lines, one item after the other
prepare     bytes to what is missing of an image: decoded in threads, ahead of the encoder
judges      a CLIP and the scores it gives; several stand side by side
texts       each distinct text encoded once; what does not fit the context
workfile    what is done, in SQLite: a row that is in it survives a kill
output      the file of scores: JSONL, CSV or parquet
run         all of it together
"""

from __future__ import annotations
