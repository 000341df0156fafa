"""What is refused, and what is said, of rows and of the settings that make examples of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gora.data.facts import NAMED_AT_MOST, Facts
from gora.data.formats import Format
from gora.errors import InputError
from gora.recipe.schema import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_for_bad_rows(data: DataSection, facts: Sequence[Facts], say: Callable[[str], None]) -> None:
    """Name the rows that cannot be used; raises InputError where `data.bad_rows` says so."""
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


def nothing_left(data: DataSection, fmt: Format, facts: Facts) -> InputError:
    """The error for a source of which no example is left."""
    rows = facts.rows + facts.more
    reasons = [f"{facts.bad:,} of its {rows:,} rows cannot be used."] if facts.bad else []
    if facts.untrained:
        reasons.append(f"{without_code(facts.untrained, rows)}.")
    if facts.dropped and data.overlong == "drop":
        reasons.append(f"{facts.dropped:,} are longer than data.max_length, {data.max_length} tokens.")
    elif facts.dropped:
        before = "what comes before the code" if data.supervise == "code" else "the prompt alone"
        reasons.append(f"In {facts.dropped:,} {before} fills data.max_length, {data.max_length} tokens.")
    return InputError(f"{facts.name} leaves no token to train on ({fmt.title}).", reasons)


def without_code(count: int, rows: int) -> str:
    """The sentence for rows without code blocks, where only those are trained."""
    return f"{count:,} of its {rows:,} rows have no fenced code block; `data.supervise: response` trains whole answers"


def refuse_code_only(data: DataSection, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool) -> None:
    """Refuse to train code blocks where it cannot be told which tokens they are; raises InputError."""
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


def warn_of_earlier_answers(data: DataSection, several: int, say: Callable[[str], None]) -> None:
    """Say that an encoder-decoder is trained on one answer of each row."""
    advice = "; `data.turns: separate` trains every answer" if data.format == "chat" else ""
    say(f"{several:,} rows have several answers, of which an encoder-decoder is trained on the last alone{advice}.")


def refuse_whole_texts(data: DataSection, encoder_decoder: bool) -> None:
    """Refuse texts without a prompt for an encoder-decoder; raises InputError."""
    if data.format == "text" and encoder_decoder:
        raise InputError(
            "data.format: text needs a decoder-only model: an encoder-decoder answers a prompt, and a text has none. "
            "Use `instruction`."
        )


def warn_of_length(data: DataSection, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> None:
    """Say that rows may be longer than the tokenizer says the model takes."""
    # -1 and numbers like 10^30 stand for no limit.
    if 0 < tokenizer.model_max_length < data.max_length:
        say(
            f"data.max_length is {data.max_length:,} tokens, but the tokenizer says that the model takes "
            f"{tokenizer.model_max_length:,}."
        )
