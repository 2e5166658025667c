"""Results to look at: pages that are one file each, parts of them in notebooks, and plots.

Each function makes a :class:`Page` of a result; a notebook shows it as it stands, and ``page.save("out.html")`` writes
a file that loads nothing from elsewhere, with at most 200 pictures::

    classifier = cg.ZeroShotClassifier(clip, ["cat", "dog"])
    report.classification(classifier(photos), photos).save("photos.html")

:mod:`clip_guidance.report.plots` draws the same with matplotlib.
"""

from clip_guidance.report.drawn import generated as generated
from clip_guidance.report.likeness import duplicates as duplicates
from clip_guidance.report.likeness import ranking as ranking
from clip_guidance.report.likeness import search as search
from clip_guidance.report.likeness import similarity as similarity
from clip_guidance.report.page import Page as Page
from clip_guidance.report.reading import data_check as data_check
from clip_guidance.report.scored import Scores as Scores
from clip_guidance.report.scored import comparison as comparison
from clip_guidance.report.scored import scores as scores
from clip_guidance.report.zero_shot import classification as classification

__all__ = [
    "Page",
    "Scores",
    "classification",
    "comparison",
    "data_check",
    "duplicates",
    "generated",
    "ranking",
    "scores",
    "search",
    "similarity",
]
