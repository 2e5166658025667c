"""Scores of one image or a million: streamed, resumable, shared among processes.

items       images, folders, tables and lines, one item after the other
prepare     what is missing of an image: decoded in threads, ahead of the encoder
judge       a CLIP and the scores it gives, or a reward (reward_judge); several judges stand side by side
texts       each distinct text encoded once; texts that do not fit the context
store       what is done, in SQLite: a row that is in it survives a kill
output      the file of scores: JSONL, CSV or parquet
results     a file of scores read for a comparison
processes   which of how many processes this is
keepalive   connections to a machine that vanished are given up
run         all of it together
"""

from __future__ import annotations
