"""The first rows of a source: what can be read, how it can be written as tokens, and how long that becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gora.data.detect import Detected
from gora.data.formats import format_for
from gora.data.rows import Untrained, Unusable
from gora.data.sources import Source
from gora.errors import InputError
from gora.recipe.schema import DataSection, Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOOKED_AT = 1000
_TOKENIZED = 200


def first_rows(found: Source, *, enough: int) -> tuple[list[dict[str, Any]], int]:
    """The first rows that can be read, and how many there are.

    Args:
        found: the source.
        enough: where counting stops.

    Raises:
        InputError: none can be read.
    """
    rows: list[dict[str, Any]] = []
    count = 0
    reasons: list[str] = []
    for part in found.parts():
        count += part.read
        if len(rows) < _LOOKED_AT:
            parsed = part.parsed()
            rows += parsed.rows
            reasons += map(str, parsed.bad)
        if count >= enough and len(rows) >= _LOOKED_AT:
            break
    if not rows:
        for file in found.files:
            found.explain_no_row(file.name)
        raise InputError(f"{found.name} holds no rows that can be read.", reasons[:3])
    return rows[:_LOOKED_AT], count


def that_renders(
    detected: Detected,
    data: str,
    rows: Sequence[dict[str, Any]],
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
) -> Detected:
    """With the chat template and the way to split turns with which most rows can be read.

    Args:
        detected: what the rows look like.
        data: file, pattern, folder or hub id of the rows.
        rows: the first of them.
        head: what the model has on top.
        tokenizer: of the model.

    Raises:
        InputError: no template can write any of them.
    """
    if detected.data.get("format") != "chat":
        return detected
    tries: list[dict[str, Any]] = [{}, {"turns": "separate"}]
    why = {"turns": "the model's template writes a turn differently when others follow"}
    if not getattr(tokenizer, "chat_template", None):
        usual = ["chatml", "plain"] if "<|im_start|>" in tokenizer.get_vocab() else ["plain", "chatml"]
        tries = [{"chat_template": template} for template in usual]
        why = {"chat_template": "the model has no template of its own"}
    unread = [(_unreadable({**detected.data, **more}, data, rows, head, tokenizer), more) for more in tries]
    reasons, best = min(unread, key=lambda each: len(each[0]))
    if len(reasons) == len(rows[:_TOKENIZED]):
        raise InputError(
            f"{data}: the chat template cannot write any of the first {len(reasons)} conversations. Give a model whose "
            "template can, or a template with --set data.format=chat --set data.chat_template=FILE.jinja.",
            reasons[:1],
        )
    told = {**detected.why, **{key: why[key] for key in best}}
    return Detected(data={**detected.data, **best}, why=told, labels=detected.labels)


def token_lengths(
    detected: Detected,
    data: str,
    rows: Sequence[dict[str, Any]],
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """Tokens of the first rows that can be read, sorted."""
    if not detected.data:
        return []
    fmt = format_for(_section(detected.data, data), tokenizer, head=head)
    lengths = []
    for row in rows[:_TOKENIZED]:
        try:
            examples = fmt.read(row).examples
        except (Unusable, Untrained):
            continue
        for example in examples:
            texts = (
                [segment.text for segment in example]
                if isinstance(example, list)
                else [example.text, example.pair or ""]
            )
            lengths.append(sum(len(tokenizer(text)["input_ids"]) for text in texts))
    return sorted(lengths)


def _unreadable(
    settings: Mapping[str, Any],
    data: str,
    rows: Sequence[dict[str, Any]],
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """Why first rows cannot be read so, those that cannot."""
    fmt = format_for(_section(settings, data), tokenizer, head=head)
    reasons = []
    for row in rows[:_TOKENIZED]:
        try:
            fmt.read(row)
        except Untrained:
            continue
        except Unusable as fault:
            reasons.append(str(fault))
    return reasons


def _section(settings: Mapping[str, Any], data: str) -> DataSection:
    return DataSection.model_validate({"train": {"path": data}, **settings})
