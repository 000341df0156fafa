"""From the recipe's `data` section to the examples of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gora.data.examples import Counts, DataCounts, Examples, count
from gora.data.facts import Facts
from gora.data.kept import Kept, open_kept
from gora.data.making import Making, TextMaking
from gora.data.mixture import Mixture, Share
from gora.data.remarks import refuse_code_only, refuse_whole_texts, without_code
from gora.data.store import Store
from gora.data.stream import Stream
from gora.data.streaming import open_stream
from gora.errors import InputError
from gora.recipe.data_schema import MixedSource
from gora.recipe.schema import DataSection, Head
from gora.recipe.sources import SettledSource, sources_of
from gora.runtime.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and evaluates on.

    Attributes:
        train: the training examples.
        eval: the examples of `data.eval` or of the holdout, or None.
        counts: what became of the rows of both.
        fingerprint: SHA-256 over the ids and labels of the training examples, in order; of several sources, over what
            that is for each, and its share; of a stream, see `OpenedStream`.
        stream: what is trained on instead, where `train` is only its first block; None otherwise.
        max_length: `data.max_length`.
        eval_sources: what messages call the sources of the examples in `eval`, by their number.
    """

    train: Examples
    eval: Examples | None
    counts: DataCounts
    fingerprint: str
    stream: Stream | None = None
    max_length: int = 0
    eval_sources: tuple[str, ...] = ()

    @property
    def per_epoch(self) -> int | None:
        """Examples in an epoch; None where nobody knows."""
        return None if self.stream else self.train.per_epoch

    @property
    def longest(self) -> int:
        """Tokens of the longest training example, which of a stream may be any that is allowed."""
        if self.stream:
            return self.max_length * (2 if self.train.encoder_decoder else 1)
        return max(self.train.lengths)


def prepare(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    encoder_decoder: bool,
    say: Callable[[str], None],
    head: Head = "language",
    world: World | None = None,
    step_rows: int = 1,
) -> PreparedData:
    """Read, format and encode the rows of a run, or map those that are kept of an earlier one.

    The same call gives the same examples in every process; the first process of each host makes them.

    Args:
        data: the recipe's section.
        tokenizer: what turns text into ids; its chat template is used by the chat format.
        seed: draws the holdout.
        encoder_decoder: whether the model has an encoder, so that prompt and response are sequences of their own.
        say: takes warnings and the list of the rows that were left out.
        head: what the model has on top: it predicts tokens, or a label for each row.
        world: the processes of the run, which all call this together; None is this one alone.
        step_rows: rows of an optimizer step, for a stream.

    Raises:
        InputError: a source cannot be read, a row is bad (and `data.bad_rows` is `error`), or nothing is left to
            train on.
    """
    if data.eval is not None and data.holdout:
        raise InputError("data.eval and data.holdout both name rows to evaluate on. Use one of them.")
    for source in sources_of(data, "train") + sources_of(data, "eval"):
        refuse_code_only(source.data, tokenizer, encoder_decoder)
        refuse_whole_texts(source.data, encoder_decoder)
    made = TextMaking(data, tokenizer, head, encoder_decoder, say, world or World())
    if data.streaming:
        return _streamed(made, seed, step_rows)
    return prepare_kept(made, seed)


def prepare_kept(made: Making, seed: int) -> PreparedData:
    """Rows that are all there: made if need be, and mapped; see `prepare`."""
    data = made.data
    kept = [open_kept(Path(entry)) for entry in _first_of_each_host(made.world, made.entries)]
    sources = sources_of(data, "train")
    trained, evaluated = kept[: len(sources)], kept[len(sources) :]
    train = made.examples(Store.mapped(*(each.file for each in trained)))
    held: Examples | None = None
    facts = [each.facts for each in trained]
    counts = _counts(train, facts)
    if data.holdout:
        train, held = _hold_out(train, data.holdout, seed, counts)
        counts = replace(_counts(train, facts), held_out=len(held))
    if isinstance(data.train, list):
        train.mixture = _mixture(sources, trained, train, seed)
    eval_counts = count(held, rows=len(held)) if held else None
    if evaluated:
        held = made.examples(Store.mapped(*(each.file for each in evaluated)))
        eval_counts = _counts(held, [each.facts for each in evaluated])
    fingerprint = train.fingerprint() if data.holdout else _fingerprint(trained)
    if train.mixture:
        fingerprint = _mixed_fingerprint(fingerprint, train.mixture)
    names = source_names(evaluated or trained) if held else ()
    return PreparedData(train, held, DataCounts(counts, eval_counts), fingerprint, eval_sources=names)


def _streamed(making: TextMaking, seed: int, step_rows: int) -> PreparedData:
    """The first block of a stream, and the rows to evaluate on."""
    data, say = making.data, making.say
    opened = open_stream(
        data,
        making.tokenizer,
        making.encoder(),
        seed,
        head=making.head,
        encoder_decoder=making.encoder_decoder,
        step_rows=step_rows,
        shape=making.shape,
    )

    def entries() -> list[str]:
        opened.stream.block(0)
        return [str(opened.stream.entry(0)), *making.entries()]

    _, *evaluation = _first_of_each_host(making.world, entries)
    kept = [open_kept(Path(entry)) for entry in evaluation]
    head = opened.stream.block(0)
    for line in opened.stream.take_remarks():
        say(line)
    evaluated = making.examples(Store.mapped(*(each.file for each in kept))) if kept else None
    counts = DataCounts(
        _counts(head.examples, head.facts),
        _counts(evaluated, [each.facts for each in kept]) if evaluated else None,
    )
    return PreparedData(
        head.examples,
        evaluated,
        counts,
        opened.fingerprint(head),
        stream=opened.stream,
        max_length=data.max_length,
        eval_sources=source_names(kept),
    )


def source_names(kept: Sequence[Kept]) -> tuple[str, ...]:
    """What messages call each source; a name that comes again is numbered."""
    names = [each.facts.name for each in kept]
    again = [names[:place].count(name) for place, name in enumerate(names)]
    return tuple(f"{name} ({count + 1})" if count else name for name, count in zip(names, again, strict=True))


def _mixture(sources: Sequence[SettledSource], kept: Sequence[Kept], train: Examples, seed: int) -> Mixture:
    """What an epoch has of each source.

    Raises:
        InputError: nothing is left of one, since all of its rows are held out.
    """
    shares = []
    for source, each, rows in zip(sources, kept, train.per_source, strict=True):
        section = source.section
        assert isinstance(section, MixedSource)
        if not rows:
            raise InputError(f"data.holdout leaves no row of {each.facts.name} to train on. Give fewer, or data.eval.")
        shares.append(Share.of(each.facts.name, rows, weight=section.weight, count=section.rows))
    return Mixture(shares, seed)


def _fingerprint(kept: Sequence[Kept]) -> str:
    if len(kept) == 1:
        return kept[0].fingerprint
    return hashlib.sha256(json.dumps([each.fingerprint for each in kept]).encode()).hexdigest()


def _mixed_fingerprint(rows: str, mixture: Mixture) -> str:
    """That of rows of which each source has a share."""
    shares = [[share.rows, share.drawn] for share in mixture.shares]
    return hashlib.sha256(json.dumps([rows, shares]).encode()).hexdigest()


def _first_of_each_host(world: World, make: Callable[[], list[str]]) -> list[str]:
    """What the first process of every host makes, told to all of that host; what one refuses, all refuse.

    Raises:
        InputError: as one of them does.
    """
    made: list[str] = []
    refusal: InputError | None = None
    if world.local_index == 0:
        try:
            made = make()
        except InputError as error:
            refusal = error
    told = world.gather({"made": made, "refused": [refusal.headline, refusal.problems] if refusal else None})
    if refusal:
        raise refusal
    for each in told:
        if each["refused"] is not None:
            raise InputError(*each["refused"])
    names = {tuple(Path(entry).name for entry in each["made"]) for each in told if each["made"]}
    if len(names) > 1:
        raise InputError("The hosts of this run read different rows, or have different versions of gora's libraries.")
    return made or list(told[world.index - world.local_index]["made"])


def _counts(examples: Examples, found: Sequence[Facts]) -> Counts:
    facts = Facts(name="all sources")
    for each in found:
        facts.add(each)
    return count(
        examples,
        rows=facts.rows + facts.more,
        bad=facts.bad,
        dropped=facts.dropped,
        without_code=facts.untrained,
    )


def _hold_out(examples: Examples, holdout: int, seed: int, counts: Counts) -> tuple[Examples, Examples]:
    """Set whole rows aside, so that no conversation has turns on both sides."""
    rows = examples.rows
    known = list(dict.fromkeys(rows))
    if holdout >= len(known):
        raise InputError(
            f"data.holdout is {holdout:,}, but there are {len(known):,} usable rows, "
            "and some must be left to train on.",
            [without_code(counts.without_code, counts.rows)] if counts.without_code else [],
        )
    drawn = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:holdout].tolist()
    held = {known[number] for number in drawn}
    kept = [index for index, row in enumerate(rows) if row not in held]
    return examples.subset(kept), examples.subset([index for index, row in enumerate(rows) if row in held])
