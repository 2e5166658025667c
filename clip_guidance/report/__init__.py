"""Results to look at: pages that are one file each, parts of them in notebooks, and plots.

Each function makes a :class:`Page` of a result. A notebook shows the page as it stands, and ``page.save("out.html")``
writes a file that loads nothing from elsewhere, with at most 200 images::

    classifier = cg.ZeroShotClassifier(clip, ["cat", "dog"])
    report.classification(classifier(photos), photos).save("photos.html")

:mod:`clip_guidance.report.plots` draws results with matplotlib.
"""

from clip_guidance.report.classification import classification as classification
from clip_guidance.report.data import data_check as data_check
from clip_guidance.report.generated import generated as generated
from clip_guidance.report.html.page import Page as Page
from clip_guidance.report.scores import Scores as Scores
from clip_guidance.report.scores import comparison as comparison
from clip_guidance.report.scores import scores as scores
from clip_guidance.report.similarity import duplicates as duplicates
from clip_guidance.report.similarity import ranking as ranking
from clip_guidance.report.similarity import search as search
from clip_guidance.report.similarity import similarity as similarity
from clip_guidance.report.tuning import tuning as tuning

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
    "tuning",
]
