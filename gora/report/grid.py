"""From the names of layers to rows (blocks of the model) and columns (module kinds)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

Parts = tuple[str, ...]

OUTSIDE = "other"
"""Group of the one row that holds the modules outside every numbered block, such as an output head."""


@dataclass(frozen=True)
class Row:
    """A numbered block of the model."""

    group: str
    """What tells stacks of blocks apart, such as `encoder`; empty where there is only one stack."""
    index: str
    """Number of the block in its stack, `2.5` where stacks are nested; empty outside every block."""

    @property
    def label(self) -> str:
        """Group and number."""
        return f"{self.group} {self.index}".strip()


@dataclass(frozen=True)
class Grid:
    """Where each module stands."""

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    """Module kinds: the shortest ends of the names that are never ambiguous inside a row."""
    places: dict[str, tuple[int, int]]
    """(row, column) of each module; no two share one."""

    def kind(self, name: str) -> str:
        """Module kind of one of the modules."""
        return self.columns[self.places[name][1]]


def arrange(names: Iterable[str]) -> Grid:
    """Lay modules out by block and kind.

    A name is cut behind the numbers that count blocks: what stands before is the row, what follows tells the column.

    Args:
        names: full names of modules, each once, in the model's order.
    """
    split = {name: tuple(name.split(".")) for name in names}
    depths = _row_depths(split.values())
    heads = {name: parts[: depths[_pattern(parts)]] for name, parts in split.items()}
    tails = {name: parts[len(heads[name]) :] for name, parts in split.items()}

    stacks = list(dict.fromkeys(_pattern(head) for head in heads.values()))
    ordered = sorted(set(heads.values()), key=lambda head: (not head, stacks.index(_pattern(head)), _numbers(head)))
    groups = _group_names([stack for stack in stacks if stack])
    rows = [Row(groups[_pattern(head)], ".".join(map(str, _numbers(head)))) for head in ordered if head]
    if len(rows) < len(ordered):
        rows.append(Row(OUTSIDE, ""))

    labels = _column_labels([(heads[name], tails[name]) for name in split])
    columns = list(dict.fromkeys(labels[tail] for tail in tails.values()))
    row_of = {head: number for number, head in enumerate(ordered)}
    column_of = {label: number for number, label in enumerate(columns)}
    places = {name: (row_of[heads[name]], column_of[labels[tails[name]]]) for name in split}
    return Grid(tuple(rows), tuple(columns), places)


def _pattern(parts: Parts) -> Parts:
    return tuple("#" if part.isdecimal() else part for part in parts)


def _numbers(parts: Parts) -> list[int]:
    return [int(part) for part in parts if part.isdecimal()]


def _row_depths(names: Iterable[Parts]) -> dict[Parts, int]:
    """How many parts of the names of each pattern belong to the row.

    A number counts blocks when the same pattern occurs with several values of it: both numbers do in Swin's
    `layers.#.blocks.#.attention.self.query`, while T5's `block.#.layer.0.SelfAttention.q` only ever has layer 0.
    A pattern that occurs once is cut at its first number. The last part is never a number of a block: in `mlp.0` and
    `mlp.2`, members of an nn.Sequential, it is all there is to tell the two kinds apart.
    """
    values: dict[Parts, list[set[str]]] = {}
    for parts in names:
        seen = values.setdefault(_pattern(parts), [set() for _ in parts])
        for position, part in enumerate(parts):
            seen[position].add(part)
    depths = {}
    for pattern, seen in values.items():
        numeric = [position for position, part in enumerate(pattern[:-1]) if part == "#"]
        counting = [position for position in numeric if len(seen[position]) > 1] or numeric[:1]
        depths[pattern] = counting[-1] + 1 if counting else 0
    return depths


def _group_names(stacks: Sequence[Parts]) -> dict[Parts, str]:
    """A short name for each stack of blocks: the first part of its pattern that no other stack has."""
    if len(stacks) <= 1:
        return dict.fromkeys(stacks, "")
    words = {stack: [part for part in stack if part != "#"] for stack in stacks}
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*words.values(), strict=False)))
    named = {}
    for stack, own in words.items():
        elsewhere = {word for other in stacks if other != stack for word in words[other]}
        named[stack] = next((word for word in own if word not in elsewhere), ".".join(own[shared:]))
    return named


def _column_labels(modules: Sequence[tuple[Parts, Parts]]) -> dict[Parts, str]:
    """The label of each tail: its last part, and one part more for all tails of a label for as long as two share a row.

    Growing all tails of an ambiguous label keeps stacks aligned: T5's encoder has only one `q`, but it still belongs
    under `SelfAttention.q` with that of the decoder, which needs the longer label.
    """
    lengths: dict[Parts, int] = {}
    for _, tail in modules:
        # `0` says nothing without what it counts, so a label starts with a word.
        lengths[tail] = next((n for n in range(1, len(tail)) if not tail[-n].isdecimal()), len(tail))
    while True:
        sharing: dict[tuple[Parts, Parts], int] = defaultdict(int)
        for head, tail in modules:
            sharing[head, tail[-lengths[tail] :]] += 1
        ambiguous = {label for (_, label), count in sharing.items() if count > 1}
        if not ambiguous:
            return {tail: ".".join(tail[-length:]) for tail, length in lengths.items()}
        for tail, length in lengths.items():
            if tail[-length:] in ambiguous:
                lengths[tail] = min(length + 1, len(tail))
