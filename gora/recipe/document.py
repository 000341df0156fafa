"""A recipe's file as plain values, with the place of every key.

Nothing but mappings, lists, text, numbers, true, false and null can come out.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gora.errors import InputError
from gora.recipe.yaml_text import MAX_DEPTH, SCALARS, TAG, NotYamlError, compose

KeyPath = tuple[str, ...]

# Far beyond any recipe, and small enough that no input takes noticeable time or memory.
_MAX_BYTES = 256 * 1024
_MAX_VALUES = 10_000
_LARGEST = 10**12


class Unreadable:
    """Stands for a value whose problem is already reported; it is of no type that a recipe takes."""


class Place(NamedTuple):
    """Where something was written: a line of a file, or an option of the command line."""

    origin: str
    line: int | None = None

    def __str__(self) -> str:
        return self.origin if self.line is None else f"{self.origin}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        place: where it was written.
        key: the key that it is about; empty when it is about the whole file.
        text: what is wrong and what was expected.
        meant: known keys that the writer probably meant, about whose values nothing certain can be said then.
    """

    place: Place
    key: KeyPath
    text: str
    meant: tuple[KeyPath, ...] = ()

    def __str__(self) -> str:
        return f"{self.place}: {dotted(self.key)}: {self.text}" if self.key else f"{self.place}: {self.text}"


@dataclass(kw_only=True)
class Document:
    """The values of a recipe as they were written, where each was written, and what is wrong so far.

    `files` are those that it was read from: the recipe itself, then the one that it extends, and so on.
    """

    origin: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = self.files or [self.origin]

    def place(self, key: KeyPath) -> Place:
        """Where the key was written, or else the nearest section around it, or else the file."""
        written = (key[:length] for length in range(len(key), 0, -1) if key[:length] in self.places)
        return next((self.places[near] for near in written), Place(self.origin))

    def distance(self, place: Place) -> int:
        """How far a place is from the last word: 0 on the command line, 1 in the recipe, 2 in the one it extends."""
        if place.origin in self.files:
            return self.files.index(place.origin) + 1
        return 0 if place.origin.startswith("--set") else len(self.files) + 1

    def value(self, key: KeyPath) -> Any:
        """The value of a key; None when there is none."""
        value: Any = self.values
        for name in key:
            value = inner_value(value, name)
        return value


def inner_value(value: Any, name: str) -> Any:
    """What a mapping has under a name, or a list at an index, counted from 0; None without."""
    if isinstance(value, list) and name.isdecimal():
        return value[int(name)] if int(name) < len(value) else None
    return value.get(name) if isinstance(value, dict) else None


def dotted(key: KeyPath) -> str:
    """`train.rank`; a name that does not look like one is quoted."""
    return ".".join(name if re.fullmatch(r"[\w-]+", name) else repr(name) for name in key)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        InputError: the file cannot be read, is not YAML, is empty, or is not a mapping at the top.
    """
    try:
        return parse_document(_read(path), str(path))
    except NotYamlError as error:
        raise _unreadable(str(path), error) from None


def parse_document(text: str, origin: str) -> Document:
    """Read a recipe's text.

    Args:
        text: YAML.
        origin: what messages call it.

    Raises:
        InputError: it is not YAML, is empty, or is not a mapping at the top.
    """
    document = Document(origin=origin)
    try:
        node = compose(text)
        if node is None or node.tag == f"{TAG}null":
            raise NotYamlError(1, "the file is empty; a recipe needs at least model.name and data.train.path")
        if not isinstance(node, yaml.MappingNode):
            raise NotYamlError(node.start_mark.line + 1, "expected sections such as 'model:' at the top of the file")
        document.values = Builder(document, document.origin).mapping(node, ())
    except NotYamlError as error:
        raise _unreadable(origin, error) from None
    return document


def _unreadable(origin: str, error: NotYamlError) -> InputError:
    return InputError(f"{origin}: 1 problem", [str(Problem(Place(origin, error.line), (), error.text))])


class Builder:
    """Makes plain values of composed nodes, and tells the document the places of keys and what is wrong.

    Args:
        document: receives places and problems.
        origin: the file, or the option of the command line.
        numbered: lines are worth telling.
    """

    def __init__(self, document: Document, origin: str, numbered: bool = True) -> None:
        self._document = document
        self._origin = origin
        self._numbered = numbered
        self._count = 0

    def value(self, node: yaml.Node, key: KeyPath, depth: int = 0) -> Any:
        """The plain value of a node.

        Raises:
            NotYamlError: aliases make more values, or deeper ones, than any recipe has.
        """
        self._count += 1
        if self._count > _MAX_VALUES or depth > MAX_DEPTH:
            raise NotYamlError(node.start_mark.line + 1, "more values, or deeper ones, than a recipe can have")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return self.mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            return [self._item(item, (*key, str(index)), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in SCALARS:
            pattern, convert = SCALARS[node.tag]
            if re.search("[\ud800-\udfff]", node.value):
                # Python could not write such text to any file.
                self._report(node, key, f"{node.value!a} has half a character; write characters, not their halves")
                return Unreadable()
            if "\0" in node.value:
                # No name of a file or a model can hold it.
                self._report(node, key, "the text holds a null character; take it out")
                return Unreadable()
            if re.fullmatch(pattern, node.value):
                value = convert(node.value)
                if isinstance(value, int | float) and _LARGEST < abs(value) < math.inf:
                    self._report(node, key, f"{node.value[:40]} is larger than any number that a recipe can hold")
                    return Unreadable()
                return value
        tag = node.tag.replace(TAG, "!!")
        self._report(node, key, f"the tag {tag!r} is not allowed here; a recipe has plain values only")
        return Unreadable()

    def _item(self, node: yaml.Node, key: KeyPath, depth: int) -> Any:
        """An item of a list; a mapping has a place of its own, with its number."""
        if not isinstance(node, yaml.MappingNode):
            return self.value(node, key[:-1], depth)
        self._document.places.setdefault(key, self._place(node))
        return self.value(node, key, depth)

    def mapping(self, node: yaml.MappingNode, key: KeyPath, depth: int = 0) -> dict[str, Any]:
        """The plain values of a mapping, by name; of a name given twice the first, or both where they are sections."""
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != f"{TAG}str":
                shown = name if isinstance(name_node, yaml.ScalarNode) else "a list or mapping"
                self._report(name_node, key, f"a key must be text, got {shown or 'nothing'}")
                continue
            if re.search("[\ud800-\udfff\0]", name):
                self._report(name_node, key, f"the key {name!a} has half a character or a null character")
                continue
            inner = (*key, name)
            first = self._document.places.get(inner)
            value = self.value(value_node, inner, depth + 1)
            if name not in values:
                values[name] = value
                self._document.places.setdefault(inner, self._place(name_node))
                continue
            lines = f" (lines {first.line} and {name_node.start_mark.line + 1})" if first and self._numbered else ""
            self._report(name_node, inner, f"given twice{lines}; keep one of the two")
            if isinstance(value, dict) and isinstance(values[name], dict):
                values[name] = {**value, **values[name]}
        return values

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._origin, node.start_mark.line + 1 if self._numbered else None)

    def _report(self, node: yaml.Node, key: KeyPath, text: str) -> None:
        self._document.problems.append(Problem(self._place(node), key, text))


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: the recipe cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise NotYamlError(1, f"larger than {_MAX_BYTES // 1024} KiB, which no recipe is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotYamlError(line, f"not UTF-8 text (byte {content[error.start]:#04x}); save it as UTF-8") from None
