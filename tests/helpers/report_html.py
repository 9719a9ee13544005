"""Reads a report page with the standard library alone, for the tests."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "hr", "img", "link", "input"}


@dataclass
class Element:
    """An element with its attributes, its text (that of its children included) and its parents."""

    tag: str
    attributes: dict[str, str]
    parents: list["Element"] = field(default_factory=list, repr=False)
    text: str = ""

    def inside(self, tag: str, **attributes: str) -> bool:
        """Whether a parent has this tag and these attributes."""
        wanted = attributes.items()
        return any(p.tag == tag and wanted <= p.attributes.items() for p in self.parents)


class Page(HTMLParser):
    """All elements of a page, in order of their start tags."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs}, list(self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(
            Element(tag, {key: value or "" for key, value in attrs}, list(self.open))
        )

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements with this tag and these attributes; `class_` stands for class."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}.items()
        return [e for e in self.elements if e.tag == tag and wanted <= e.attributes.items()]

    @property
    def headings(self) -> list[str]:
        """The texts of the h2 elements."""
        return [element.text for element in self.all("h2")]

    @property
    def figures(self) -> list[str]:
        """The titles of the figures."""
        return [element.text for element in self.all("h3") if element.inside("figure")]
