"""Documents and bytes that are nearly right: valid ones, in which something is replaced, taken out, doubled or torn."""

import copy
import json

from hypothesis import strategies as st

NASTY = (
    "",
    "\0",
    "a\0b",
    "\ud800",
    "../../outside",
    "/etc/passwd",
    "(a+)+$",
    "{prompt}{",
    "{% for x in y %}",
    "nan",
    "~",
    "builtin:",
    "x" * 5000,
    "[" * 2000,
)
NUMBERS = (0, -1, 10**30, -(10**30), 2**63, 1e308, 1e-308, float("nan"), float("inf"), -float("inf"), True)

scalars = st.one_of(
    st.none(), st.sampled_from(NASTY), st.sampled_from(NUMBERS), st.integers(), st.floats(), st.text(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
HOWS = ("replace", "replace", "drop", "rename", "wrap", "double")


def places(document, path=()):
    """The path of every value in a document, its own too."""
    yield path
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from places(value, (*path, key))


@st.composite
def mutated(draw, document, most=3):
    """A document with up to so many values, keys or items changed."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        paths = list(places(document))
        path = draw(st.sampled_from(paths))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                document = draw(values)
            continue
        around = document
        for key in path[:-1]:
            around = around[key]
        change(draw, around, path[-1])
    return document


def change(draw, around, key):
    """One value of a mapping or list."""
    how = draw(st.sampled_from(HOWS))
    if how == "replace":
        around[key] = draw(values)
    elif how == "wrap":
        around[key] = [around[key]]
    elif how == "drop":
        del around[key]
    elif isinstance(around, list):
        around.append(around[key])
    elif how == "rename":
        around[draw(st.sampled_from(NASTY) | st.text(max_size=8))] = around.pop(key)
    else:
        around[key] = {key: around[key]}


@st.composite
def torn(draw, content):
    """Bytes of which some are flipped, taken out, put in or doubled."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(("flip", "cut", "insert", "end", "double")))
        if how == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[place : place + draw(st.integers(1, 40))]
        elif how == "insert":
            content[place:place] = draw(
                st.binary(min_size=1, max_size=8) | st.sampled_from([b"\0", b"\xff\xfe", b"\n["])
            )
        elif how == "end":
            del content[place:]
        else:
            content += content[: draw(st.integers(1, 200))]
    return bytes(content)


def as_json(document):
    """JSON text, also of what is no text."""
    return json.dumps(document).encode()


def files(document, as_bytes=as_json):
    """The content of a file: the document mutated, its bytes torn, or both."""
    return mutated(document).map(as_bytes) | torn(as_bytes(document)) | mutated(document).map(as_bytes).flatmap(torn)
