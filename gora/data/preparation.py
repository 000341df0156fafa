"""From the recipe's `data` section to the examples of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gora.data.encode import Encoded, Encoder
from gora.data.encode_text import TextEncoder
from gora.data.examples import Counts, DataCounts, Examples, count
from gora.data.formats import Formatted, bring_into, format_for
from gora.data.sources import read_rows
from gora.errors import InputError
from gora.recipe.schema import DataSection, Head, SourceSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRAIN_SPLITS = ("train",)
_EVAL_SPLITS = ("test", "validation")
_NAMED_AT_MOST = 10

Encode = Callable[[Iterable[Any]], Iterator[Encoded | None]]


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
) -> PreparedData:
    """Read, format and encode the rows of a run. The same call gives the same examples in every process.

    Args:
        data: the recipe's section.
        tokenizer: what turns text into ids; its chat template is used by the chat format.
        seed: draws the holdout.
        encoder_decoder: whether the model has an encoder, so that prompt and response are sequences of their own.
        say: takes warnings and the list of the rows that were left out.
        head: what the model has on top: it predicts tokens, or a label for each row.

    Raises:
        InputError: a source cannot be read, a row is bad (and `data.bad_rows` is `error`), or nothing is left to
            train on.
    """
    if data.eval is not None and data.holdout:
        raise InputError("data.eval and data.holdout both name rows to evaluate on. Use one of them.")
    _refuse_code_only(data, tokenizer, encoder_decoder)
    _refuse_whole_texts(data, encoder_decoder)
    encode, shape = _encoding(data, tokenizer, head, encoder_decoder)
    _warn_of_length(data, tokenizer, say)
    # Both sources are checked before either is tokenised, which is what takes the time.
    train = _formatted(data, data.train, _TRAIN_SPLITS, tokenizer, head)
    evaluated = _formatted(data, data.eval, _EVAL_SPLITS, tokenizer, head) if data.eval is not None else None
    sources = [train, evaluated] if evaluated else [train]
    for note in [*train.fmt.notes(), *dict.fromkeys(source.notice() for source in sources)]:
        if note is not None:
            say(note)
    _answer_for_bad_rows(data, sources, say)

    if encoder_decoder:
        _warn_of_earlier_answers(data, train, say)

    train_set, train_counts, train_rows = _encoded(data, train, encode, shape)
    eval_set, eval_counts = None, None
    if evaluated is not None:
        eval_set, eval_counts, _ = _encoded(data, evaluated, encode, shape)
    elif data.holdout:
        train_set, eval_set = _hold_out(train_set, train_rows, data.holdout, seed, train_counts)
        train_counts = count(
            train_set,
            rows=train_counts.rows,
            bad=train_counts.bad,
            dropped=train_counts.dropped,
            held_out=len(eval_set),
            without_code=train_counts.without_code,
        )
        eval_counts = count(eval_set, rows=len(eval_set))
    return PreparedData(train_set, eval_set, DataCounts(train_counts, eval_counts), train_set.fingerprint())


def _encoding(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, head: Head, encoder_decoder: bool
) -> tuple[Encode, dict[str, Any]]:
    """What encodes the rows, and what `Examples` has to know about them."""
    if head == "classification":
        return TextEncoder(tokenizer, data.max_length, data.overlong), {"choices": data.choices or ()}
    encoder = Encoder(tokenizer, data.max_length, data.overlong, encoder_decoder=encoder_decoder)
    return encoder, {"encoder_decoder": encoder_decoder}


def _formatted(
    data: DataSection, source: SourceSection, splits: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, head: Head
) -> Formatted:
    rows = read_rows(source, splits)
    fmt = format_for(data, tokenizer, typed=rows.typed, head=head)
    return bring_into(rows, fmt, data.ignore)


def _answer_for_bad_rows(data: DataSection, sources: list[Formatted], say: Callable[[str], None]) -> None:
    bad = [row for source in sources for row in source.bad]
    if not bad:
        return
    named = [str(row) for row in bad[:_NAMED_AT_MOST]]
    if len(bad) > len(named):
        named.append(f"and {len(bad) - len(named):,} more")
    total = "; ".join(
        f"{name}: {count:,} of {rows:,} rows cannot be used"
        for source in sources
        for name, count, rows in source.rows.shares(row.position for row in source.bad)
    )
    if data.bad_rows == "error":
        raise InputError(f"{total}. Fix them, or skip them with `data.bad_rows: skip`.", named)
    say("\n".join([f"{total} and are left out:", *(f"  - {line}" for line in named)]))


def _encoded(
    data: DataSection, source: Formatted, encode: Encode, shape: dict[str, Any]
) -> tuple[Examples, Counts, list[int]]:
    """The examples, what became of the rows, and the row that each example is of."""
    encoded = list(encode(source.examples()))
    kept = [(one, *origin) for one, origin in zip(encoded, source.origins(), strict=True) if one is not None]
    examples = Examples([one for one, _, _ in kept], [place for _, _, place in kept], **shape)
    counts = count(
        examples,
        rows=source.rows.read + source.more,
        bad=len(source.bad),
        dropped=len(encoded) - len(kept),
        without_code=source.untrained,
    )
    if not kept:
        raise _nothing_left(data, source, counts)
    return examples, counts, [row for _, row, _ in kept]


def _nothing_left(data: DataSection, source: Formatted, counts: Counts) -> InputError:
    reasons = [f"{counts.bad:,} of its {counts.rows:,} rows cannot be used."] if counts.bad else []
    if counts.without_code:
        reasons.append(f"{_without_code(counts)}.")
    if counts.dropped and data.overlong == "drop":
        reasons.append(f"{counts.dropped:,} are longer than data.max_length, {data.max_length} tokens.")
    elif counts.dropped:
        before = "what comes before the code" if data.supervise == "code" else "the prompt alone"
        reasons.append(f"In {counts.dropped:,} {before} fills data.max_length, {data.max_length} tokens.")
    return InputError(f"{source.rows.name} leaves no token to train on ({source.fmt.title}).", reasons)


def _without_code(counts: Counts) -> str:
    rows = f"{counts.without_code:,} of its {counts.rows:,} rows have no fenced code block"
    return f"{rows}; `data.supervise: response` trains whole answers"


def _hold_out(
    examples: Examples, rows: list[int], holdout: int, seed: int, counts: Counts
) -> tuple[Examples, Examples]:
    """Set whole rows aside, so that no conversation has turns on both sides."""
    known = list(dict.fromkeys(rows))
    if holdout >= len(known):
        raise InputError(
            f"data.holdout is {holdout:,}, but there are {len(known):,} usable rows, "
            "and some must be left to train on.",
            [_without_code(counts)] if counts.without_code else [],
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


def _warn_of_earlier_answers(data: DataSection, source: Formatted, say: Callable[[str], None]) -> None:
    several = sum(sum(segment.supervised for segment in segments) > 1 for segments in source.examples())
    if several:
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
