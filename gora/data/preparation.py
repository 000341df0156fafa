"""From the recipe's `data` section to the examples of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gora.data.encode import Encoder
from gora.data.encode_text import TextEncoder
from gora.data.examples import Counts, DataCounts, Examples, count
from gora.data.facts import NAMED_AT_MOST, Facts
from gora.data.formats import Format, format_for
from gora.data.kept import Wanted, keep, open_kept
from gora.data.row_key import row_key, settings_key
from gora.data.sources import find_source
from gora.errors import InputError
from gora.recipe.schema import DataSection, Head
from gora.runtime.row_cache import row_folder
from gora.runtime.workers import cores
from gora.runtime.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLITS = {"train": ("train",), "eval": ("test", "validation")}


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and evaluates on.

    Attributes:
        train: the training examples.
        eval: the examples of `data.eval` or of the holdout, or None.
        counts: what became of the rows of both.
        fingerprint: SHA-256 over the ids and labels of the training examples, in order.
    """

    train: Examples
    eval: Examples | None
    counts: DataCounts
    fingerprint: str


def prepare(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    encoder_decoder: bool,
    say: Callable[[str], None],
    head: Head = "language",
    world: World | None = None,
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

    Raises:
        InputError: a source cannot be read, a row is bad (and `data.bad_rows` is `error`), or nothing is left to
            train on.
    """
    if data.eval is not None and data.holdout:
        raise InputError("data.eval and data.holdout both name rows to evaluate on. Use one of them.")
    _refuse_code_only(data, tokenizer, encoder_decoder)
    _refuse_whole_texts(data, encoder_decoder)
    world = world or World()
    made = _Making(data, tokenizer, head, encoder_decoder, say, world)
    entries = [Path(entry) for entry in _first_of_each_host(world, made.entries)]
    shape: dict[str, Any] = {"choices": data.choices or ()} if head == "classification" else {}
    if head == "language":
        shape["encoder_decoder"] = encoder_decoder
    kept = [open_kept(entry) for entry in entries]
    sets = [Examples(each.store, **shape) for each in kept]
    counts = [_counts(examples, each.facts) for examples, each in zip(sets, kept, strict=True)]
    if not data.holdout:
        evaluated = (sets[1], counts[1]) if len(sets) > 1 else (None, None)
        return PreparedData(sets[0], evaluated[0], DataCounts(counts[0], evaluated[1]), kept[0].fingerprint)
    train, held = _hold_out(sets[0], data.holdout, seed, counts[0])
    left = replace(_counts(train, kept[0].facts), held_out=len(held))
    return PreparedData(train, held, DataCounts(left, count(held, rows=len(held))), train.fingerprint())


class _Making:
    """What it takes to make the rows of a run."""

    def __init__(
        self,
        data: DataSection,
        tokenizer: PreTrainedTokenizerBase,
        head: Head,
        encoder_decoder: bool,
        say: Callable[[str], None],
        world: World,
    ) -> None:
        self._data, self._tokenizer, self._head, self._encoder_decoder = data, tokenizer, head, encoder_decoder
        self._say, self._world = say, world

    def entries(self) -> list[str]:
        """The folders of the training rows and of the evaluation rows, if there are any; they are made if need be.

        Raises:
            InputError: see `prepare`.
        """
        data = self._data
        encoder = self._encoder()
        _warn_of_length(data, self._tokenizer, self._say)
        settings = settings_key(data, self._tokenizer, head=self._head, encoder_decoder=self._encoder_decoder)
        wanted = [self._wanted(name, settings) for name in ("train", "eval") if getattr(data, name) is not None]
        keep(
            wanted,
            encoder,
            encoder,
            workers=cores(self._world.local_size),
            answer=lambda facts: self._answer(facts, wanted[0].fmt),
            nothing_left=lambda rows, facts: _nothing_left(data, rows.fmt, facts),
        )
        return [str(each.entry) for each in wanted]

    def _encoder(self) -> Encoder | TextEncoder:
        data = self._data
        if self._head == "classification":
            return TextEncoder(self._tokenizer, data.max_length, data.overlong)
        return Encoder(self._tokenizer, data.max_length, data.overlong, encoder_decoder=self._encoder_decoder)

    def _wanted(self, name: str, settings: dict[str, Any]) -> Wanted:
        section = getattr(self._data, name)
        source = find_source(section, _SPLITS[name])
        fmt = format_for(self._data, self._tokenizer, typed=source.typed, head=self._head)
        entry = row_folder(self._data.cache) / row_key(settings, section, source)
        return Wanted(entry=entry.absolute(), source=source, fmt=fmt, ignore=self._data.ignore)

    def _answer(self, facts: list[Facts], fmt: Format) -> None:
        """Say what was found in the rows.

        Raises:
            InputError: some are bad and must not be.
        """
        for note in [*fmt.notes(), *dict.fromkeys(each.notice() for each in facts)]:
            if note is not None:
                self._say(note)
        _answer_for_bad_rows(self._data, facts, self._say)
        if self._encoder_decoder and facts[0].answering:
            _warn_of_earlier_answers(self._data, facts[0].answering, self._say)


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


def _answer_for_bad_rows(data: DataSection, facts: Sequence[Facts], say: Callable[[str], None]) -> None:
    bad = sum(each.bad for each in facts)
    if not bad:
        return
    named = [line for each in facts for line in each.named][:NAMED_AT_MOST]
    if bad > len(named):
        named.append(f"and {bad - len(named):,} more")
    total = "; ".join(
        f"{file.name}: {file.bad:,} of {file.rows:,} rows cannot be used"
        for each in facts
        for file in each.files
        if file.bad
    )
    if data.bad_rows == "error":
        raise InputError(f"{total}. Fix them, or skip them with `data.bad_rows: skip`.", named)
    say("\n".join([f"{total} and are left out:", *(f"  - {line}" for line in named)]))


def _counts(examples: Examples, facts: Facts) -> Counts:
    return count(
        examples,
        rows=facts.rows + facts.more,
        bad=facts.bad,
        dropped=facts.dropped,
        without_code=facts.untrained,
    )


def _nothing_left(data: DataSection, fmt: Format, facts: Facts) -> InputError:
    rows = facts.rows + facts.more
    reasons = [f"{facts.bad:,} of its {rows:,} rows cannot be used."] if facts.bad else []
    if facts.untrained:
        reasons.append(f"{_without_code(facts.untrained, rows)}.")
    if facts.dropped and data.overlong == "drop":
        reasons.append(f"{facts.dropped:,} are longer than data.max_length, {data.max_length} tokens.")
    elif facts.dropped:
        before = "what comes before the code" if data.supervise == "code" else "the prompt alone"
        reasons.append(f"In {facts.dropped:,} {before} fills data.max_length, {data.max_length} tokens.")
    return InputError(f"{facts.name} leaves no token to train on ({fmt.title}).", reasons)


def _without_code(count: int, rows: int) -> str:
    return f"{count:,} of its {rows:,} rows have no fenced code block; `data.supervise: response` trains whole answers"


def _hold_out(examples: Examples, holdout: int, seed: int, counts: Counts) -> tuple[Examples, Examples]:
    """Set whole rows aside, so that no conversation has turns on both sides."""
    rows = examples.rows
    known = list(dict.fromkeys(rows))
    if holdout >= len(known):
        raise InputError(
            f"data.holdout is {holdout:,}, but there are {len(known):,} usable rows, "
            "and some must be left to train on.",
            [_without_code(counts.without_code, counts.rows)] if counts.without_code else [],
        )
    drawn = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:holdout].tolist()
    held = {known[number] for number in drawn}
    kept = [index for index, row in enumerate(rows) if row not in held]
    return examples.subset(kept), examples.subset([index for index, row in enumerate(rows) if row in held])


def _refuse_code_only(data: DataSection, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool) -> None:
    if data.supervise != "code":
        return
    if encoder_decoder:
        raise InputError(
            "data.supervise: code needs a decoder-only model: a decoder that sees the prompt through an encoder has no "
            "place for text that is read and not trained. Use `response`."
        )
    if not tokenizer.is_fast:
        raise InputError(
            "data.supervise: code needs a fast tokenizer, which tells where its tokens lie. Use `response`."
        )


def _warn_of_earlier_answers(data: DataSection, several: int, say: Callable[[str], None]) -> None:
    advice = "; `data.turns: separate` trains every answer" if data.format == "chat" else ""
    say(f"{several:,} rows have several answers, of which an encoder-decoder is trained on the last alone{advice}.")


def _refuse_whole_texts(data: DataSection, encoder_decoder: bool) -> None:
    if data.format == "text" and encoder_decoder:
        raise InputError(
            "data.format: text needs a decoder-only model: an encoder-decoder answers a prompt, and a text has none. "
            "Use `instruction`."
        )


def _warn_of_length(data: DataSection, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> None:
    # -1 and numbers like 10^30 stand for no limit.
    if 0 < tokenizer.model_max_length < data.max_length:
        say(
            f"data.max_length is {data.max_length:,} tokens, but the tokenizer says that the model takes "
            f"{tokenizer.model_max_length:,}."
        )
