"""A page of HTML as a tree, for tests: only well-formed pages can be read."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser

from PIL import Image

VOID = {"img", "meta"}
UNSAFE = {"script", "iframe", "object", "embed", "link", "form", "base"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What is read on it, blanks joined."""
        pieces = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join(" ".join(pieces).split())

    def all(self, tag: str, of_class: str = "") -> list[Element]:
        """The elements below it with this tag, and this class if one is given, in order."""
        below = [child for child in self.children if isinstance(child, Element)]
        own = [[child] if child.tag == tag and of_class in child.attributes.get("class", "") else [] for child in below]
        return [found for one, child in zip(own, below, strict=True) for found in [*one, *child.all(tag, of_class)]]

    def everything(self) -> list[Element]:
        below = [child for child in self.children if isinstance(child, Element)]
        return [self, *(one for child in below for one in child.everything())]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page")]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> ends <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(html: str) -> Element:
    """The tree of a page or a part of one; fails where a tag is not closed, or an attribute stands twice."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is not closed"
    return reader.open[0]


def assert_harmless(page: Element) -> None:
    """Nothing runs, and nothing is loaded from elsewhere."""
    for element in page.everything():
        assert element.tag not in UNSAFE
        for name, value in element.attributes.items():
            assert not name.startswith("on"), f"<{element.tag} {name}={value}>"
            assert name not in {"href", "src", "srcset", "action", "background"} or value.startswith("data:image/")
            assert name != "style" or not any(mark in value for mark in ("url", "import", "expression", ";"))
    for style in page.all("style"):
        assert not any(mark in style.text for mark in ("url(", "@import", "http"))


def image(element: Element) -> Image.Image:
    """The image that an <img> embeds."""
    kind, data = element.attributes["src"].split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
