"""YAML text and its nodes: read by the core rules of YAML 1.2, so that `1e-5` is a number and `no` is text.

Nothing of PyYAML that builds objects ever runs.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

MAX_DEPTH = 20
"""Far deeper than any recipe."""

TAG = "tag:yaml.org,2002:"
SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    f"{TAG}null": (r"~|null|Null|NULL|", lambda text: None),
    f"{TAG}bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    # More digits than this are left to float: Python refuses to convert very long whole numbers.
    f"{TAG}int": (r"[-+]?[0-9]{1,100}", int),
    f"{TAG}float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
    f"{TAG}str": (r"(?s:.*)", str),
}
_SYNTAX_HINTS = {
    "\\t": "indent with spaces, not with tabs",
    "mapping values are not allowed": "put quotes around text that contains a colon and a space",
    "could not find expected ':'": "a key is followed by a colon and a space",
    "expected <block end>": "check that the keys of a section are indented alike",
}


class NotYamlError(Exception):
    """The text is not YAML that a recipe may hold; `line` counts from 1."""

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.text = text
        super().__init__(text)


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


def dump(values: dict[str, Any] | list[Any], *, flow: bool = False) -> str:
    """Write plain values as YAML that reads back the same, here and in readers of YAML 1.1.

    Args:
        values: a mapping or a list.
        flow: on one line, with brackets.
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=flow)


def annotated(text: str, notes: Mapping[str, str]) -> str:
    """Dumped text with a comment behind the keys of some settings of a section, or at the top.

    Args:
        text: what `dump` wrote.
        notes: by dotted key of at most two parts.
    """
    lines, section = text.split("\n"), ""
    for number, line in enumerate(lines):
        found = re.match(r"(  )?([a-z_0-9]+):( |$)", line)
        if found is None:
            continue
        indented, name = found[1], found[2]
        section = section if indented else name
        note = notes.get(f"{section}.{name}" if indented else name)
        if note:
            # A comment ends with its line.
            lines[number] = f"{line}  # {' '.join(note.split())}"
    return "\n".join(lines)


def _syntax(problem: str) -> str:
    hints = "".join(f"; {hint}" for sign, hint in _SYNTAX_HINTS.items() if sign in problem)
    return f"not valid YAML: {problem}{hints}"


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth > MAX_DEPTH:
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
    return dumper.represent_scalar(f"{TAG}str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}  # without YAML 1.1's dates, octal numbers, yes and no
for _tag in ("null", "bool", "int", "float"):
    _plain = re.compile(rf"(?:{SCALARS[TAG + _tag][0]})\Z")
    _Loader.add_implicit_resolver(TAG + _tag, _plain, None)
    _Dumper.add_implicit_resolver(TAG + _tag, _plain, None)
