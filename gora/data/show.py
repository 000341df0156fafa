"""One tokenised example, as a person would want to check it before a run."""

from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.text import Text

from gora.data.encode import IGNORED
from gora.data.examples import Examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"
"""The marks around what is trained on, for terminals and logs without colour."""

_SUPERVISED = "bold green"
# Control characters of a data set must not reach the terminal as commands; their pictures can.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def sample_text(
    tokenizer: "PreTrainedTokenizerBase", dataset: Examples, index: int = 0, width: int | None = None
) -> RenderableType:
    """One example with its special tokens, its supervised part marked, and a line of facts on it.

    Args:
        tokenizer: the tokenizer that encoded it.
        dataset: the examples.
        index: which of them.
        width: widest line in columns; None takes the terminal's width.

    Returns:
        A renderable for rich's `print`.
    """
    example = dataset[index]
    text = Text()
    if dataset.choices:
        _append(text, tokenizer, example["input_ids"], [False] * len(example["input_ids"]))
        text.append(f"\n{OPEN}{dataset.choices[example['labels'][0]]}{CLOSE}".translate(_PICTURES), style=_SUPERVISED)
        return Constrain(Group(text, Text(), _facts_of_label(dataset, index)), width)
    if dataset.encoder_decoder:
        _append(text, tokenizer, example["input_ids"], [False] * len(example["input_ids"]))
        text.append("\n")
        _append(text, tokenizer, example["labels"], [True] * len(example["labels"]))
    else:
        _append(text, tokenizer, example["input_ids"], [label != IGNORED for label in example["labels"]])
    return Constrain(Group(text, Text(), _facts(tokenizer, dataset, index)), width)


def _append(text: Text, tokenizer: "PreTrainedTokenizerBase", ids: list[int], trained: list[bool]) -> None:
    borders = [0, *(i for i in range(1, len(ids)) if trained[i] != trained[i - 1]), len(ids)]
    shown = ""
    for start, end in pairwise(borders):
        # Decoding from the start and not piece by piece keeps the spaces that a decoder drops at the start of a text.
        whole = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        piece, shown = str(whole)[len(shown) :].translate(_PICTURES), str(whole)
        if trained[start]:
            text.append(f"{OPEN}{piece}{CLOSE}", style=_SUPERVISED)
        else:
            text.append(piece)


def _facts(tokenizer: "PreTrainedTokenizerBase", dataset: Examples, index: int) -> Text:
    example, tokens, supervised = dataset[index], dataset.lengths[index], dataset.supervised[index]
    ended = tokenizer.eos_token_id in example["labels"]
    facts = [
        f"{tokens:,} tokens",
        f"{supervised:,} supervised ({round(100 * supervised / tokens)} %)",
        f"BOS {_bos(tokenizer, example['input_ids'])}",
        f"EOS trained: {'yes' if ended else 'no'}" + (" (the row was cut)" if dataset.truncated(index) else ""),
        dataset.where(index),
    ]
    return Text(" · ".join(facts), style="dim")


def _facts_of_label(dataset: Examples, index: int) -> Text:
    facts = [
        f"{dataset.lengths[index]:,} tokens" + (" (the row was cut)" if dataset.truncated(index) else ""),
        f"label {dataset[index]['labels'][0]} of {len(dataset.choices)}",
        dataset.where(index),
    ]
    return Text(" · ".join(facts), style="dim")


def _bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    leading = 0
    while tokenizer.bos_token_id is not None and ids[leading : leading + 1] == [tokenizer.bos_token_id]:
        leading += 1
    return {0: "none", 1: "once"}.get(leading, "twice!")
