"""Read images and their captions from folders, tables, tars and the Hub: one reader, one policy for bad rows.

::

    pairs = open_pairs("shards/{0000..0012}.tar", seed=0, shuffle_buffer=1024, workers=8, quarantine="bad.jsonl")
    for pair in pairs:  # one epoch
        pair.image, pair.captions  # RGB image, ("a red apple", ...)
"""

from clip_guidance.data.check import Report as Report
from clip_guidance.data.check import check as check
from clip_guidance.data.dataset import CaptionedImages as CaptionedImages
from clip_guidance.data.open import open_pairs as open_pairs
from clip_guidance.data.pairs import Pairs as Pairs
from clip_guidance.data.policy import Policy as Policy
from clip_guidance.data.policy import TooManyBadRows as TooManyBadRows
from clip_guidance.data.records import BadRow as BadRow
from clip_guidance.data.records import Pair as Pair
from clip_guidance.data.records import SourceError as SourceError

__all__ = [
    "open_pairs",
    "Pairs",
    "Pair",
    "Policy",
    "Report",
    "check",
    "CaptionedImages",
    "BadRow",
    "SourceError",
    "TooManyBadRows",
]
