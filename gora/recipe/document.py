"""YAML text as plain values, with the place of every key.

Plain scalars are read by YAML 1.2's core rules, so `1e-5` is a number and `no` is text. Nothing but mappings, lists,
text, numbers, true, false and null can come out, and nothing of PyYAML that builds objects ever runs.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gora.errors import InputError

KeyPath = tuple[str, ...]

# Far beyond any recipe, and small enough that no input takes noticeable time or memory.
_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 20
_MAX_VALUES = 10_000
_LARGEST = 10**12

_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    f"{_TAG}null": (r"~|null|Null|NULL|", lambda text: None),
    f"{_TAG}bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    # More digits than this are left to float: Python refuses to convert very long whole numbers.
    f"{_TAG}int": (r"[-+]?[0-9]{1,100}", int),
    f"{_TAG}float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
    f"{_TAG}str": (r"(?s:.*)", str),
}
_SYNTAX_HINTS = {
    "\\t": "indent with spaces, not with tabs",
    "mapping values are not allowed": "put quotes around text that contains a colon and a space",
    "could not find expected ':'": "a key is followed by a colon and a space",
    "expected <block end>": "check that the keys of a section are indented alike",
}


class Unreadable:
    """Stands for a value whose problem is already reported; it is of no type that a recipe takes."""


class NotYamlError(Exception):
    """The text is not YAML that a recipe may hold; `line` counts from 1."""

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.text = text
        super().__init__(text)


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
        return self.files.index(place.origin) + 1 if place.origin in self.files else 0

    def value(self, key: KeyPath) -> Any:
        """The value of a key; None when there is none."""
        value: Any = self.values
        for name in key:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def dotted(key: KeyPath) -> str:
    """`train.rank`; a name that does not look like one is quoted."""
    return ".".join(name if re.fullmatch(r"[\w-]+", name) else repr(name) for name in key)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        InputError: the file cannot be read, is not YAML, is empty, or is not a mapping at the top.
    """
    document = Document(origin=str(path))
    try:
        node = compose(_read(path))
        if node is None or node.tag == f"{_TAG}null":
            raise NotYamlError(1, "the file is empty; a recipe needs at least model.name and data.train.path")
        if not isinstance(node, yaml.MappingNode):
            raise NotYamlError(node.start_mark.line + 1, "expected sections such as 'model:' at the top of the file")
        document.values = Builder(document, document.origin).mapping(node, ())
    except NotYamlError as error:
        problem = Problem(Place(document.origin, error.line), (), error.text)
        raise InputError(f"{document.origin}: 1 problem", [str(problem)]) from None
    return document


def compose(text: str) -> yaml.Node | None:
    """Compose one YAML document; None when the text is empty.

    Raises:
        NotYamlError: the text is not YAML, or nested more deeply than any recipe.
    """
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise NotYamlError(line, _syntax(str(error.problem or error.context))) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYamlError(line, f"the character {chr(int(error.character))!a} cannot stand in YAML") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets some errors of `chr` and `int` through, as for the escape "\UFFFFFFFF".
        raise NotYamlError(1, _syntax(str(error))) from None


def dump(values: dict[str, Any]) -> str:
    """Write plain values as YAML that reads back the same, here and in readers of YAML 1.1."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


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
        if self._count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise NotYamlError(node.start_mark.line + 1, "more values, or deeper ones, than a recipe can have")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, key, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            pattern, convert = _SCALARS[node.tag]
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
        tag = node.tag.replace(_TAG, "!!")
        self._report(node, key, f"the tag {tag!r} is not allowed here; a recipe has plain values only")
        return Unreadable()

    def mapping(self, node: yaml.MappingNode, key: KeyPath, depth: int = 0) -> dict[str, Any]:
        """The plain values of a mapping, by name; of a name given twice the first, or both where they are sections."""
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != f"{_TAG}str":
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


def _syntax(problem: str) -> str:
    hints = "".join(f"; {hint}" for sign, hint in _SYNTAX_HINTS.items() if sign in problem)
    return f"not valid YAML: {problem}{hints}"


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth > _MAX_DEPTH:
            # Before Python's own limit on recursion is met.
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "more nested than a recipe can be", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes all text that YAML 1.1 or the rules above would read as something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Outside double quotes YAML reads these line breaks back as line feeds.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else "|" if "\n" in text else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}  # without YAML 1.1's dates, octal numbers, yes and no
for _tag in ("null", "bool", "int", "float"):
    _plain = re.compile(rf"(?:{_SCALARS[_TAG + _tag][0]})\Z")
    _Loader.add_implicit_resolver(_TAG + _tag, _plain, None)
    _Dumper.add_implicit_resolver(_TAG + _tag, _plain, None)
