"""Prompt templates: the sentences that the name of a class is put into before a CLIP reads it.

A template is a text with ``{}`` (or ``{c}``) in the place of the name, or a function of the name, which is what the
published lists of templates hold. The packaged CLIPs were trained on the word "picture", so these texts say it too.
"""

from __future__ import annotations

from collections.abc import Callable

Template = str | Callable[[str], str]

NAME_TEMPLATE = "a picture of a {}"  # the text that stands for a name in retrieval
TRAINING_TEMPLATES = ("{}", "a {}", NAME_TEMPLATE)  # each training step draws one of them
DEFAULT_TEMPLATES: tuple[Template, ...] = (*TRAINING_TEMPLATES, "a photo of a {}", "a drawing of a {}")
DEFAULT_ANY = ("a picture", "something", "a picture of something else")  # texts that fit any image
