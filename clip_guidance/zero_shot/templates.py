"""Prompt templates that turn the name of a class into texts."""

from __future__ import annotations

from collections.abc import Callable

TEMPLATES = ("{}", "a {}", "a picture of a {}")  # a step draws one


Template = str | Callable[[str], str]
DEFAULT_ANY = ("a picture", "something", "a picture of something else")
DEFAULT_TEMPLATES: tuple[Template, ...] = ("{}", "a {}", "a picture of a {}", "a photo of a {}", "a drawing of a {}")
