"""Answers on the way: what the model writes to the first evaluation prompts, as training goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from gora.data import IGNORED
from gora.data.examples import Examples
from gora.files import append_line, parse_json
from gora.runtime.console import Output

_LONGEST_ANSWER = 64
_SHOWN = 160


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One evaluation row, up to where its answer begins.

    Attributes:
        ids: of the prompt.
        expected: text of the answer in the row.
    """

    ids: list[int]
    expected: str


def first_prompts(
    rows: Examples, count: int, tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool
) -> list[Prompt]:
    """The first rows that have a prompt and an answer.

    Args:
        rows: tokenized rows, with `input_ids` and `labels`.
        count: how many are wanted.
        tokenizer: writes the answers as text.
        encoder_decoder: the whole input is the prompt.
    """
    found: list[Prompt] = []
    for index in range(len(rows)):
        if len(found) == count:
            break
        ids, labels = list(rows[index]["input_ids"]), list(rows[index]["labels"])
        begin = next((place for place, label in enumerate(labels) if label != IGNORED), 0)
        prompt = ids if encoder_decoder else ids[:begin]
        answer = [label for label in labels[begin:] if label != IGNORED]
        if prompt and answer:
            found.append(Prompt(ids=prompt, expected=str(tokenizer.decode(answer, skip_special_tokens=True))))
    return found


class Samples(TrainerCallback):
    """At every evaluation, answers the same prompts greedily and writes them to a file; the first one is shown.

    Args:
        model: what is trained; its weights are whole in this process.
        tokenizer: the model's.
        prompts: what is asked.
        file: one JSON object per answer: `step`, `prompt`, `expected`, `output`.
        output: where the first answer is shown.
        last_step: answers of later steps are dropped, as a resumed run writes them again.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        file: Path,
        output: Output,
        *,
        last_step: int = 0,
    ) -> None:
        self._model, self._tokenizer, self._prompts = model, tokenizer, prompts
        self._file, self._output = file, output
        kept = [line for line in read_samples(file) if line["step"] <= last_step]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Answer all prompts."""
        for number, prompt in enumerate(self._prompts):
            answer = self._answer(prompt.ids)
            line = {
                "step": state.global_step,
                "prompt": self._tokenizer.decode(prompt.ids, skip_special_tokens=True),
                "expected": prompt.expected,
                "output": answer,
            }
            append_line(self._file, json.dumps(line))
            if number == 0:
                text = " ".join(answer.split())
                self._output.say(f"sample    {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}")

    def _answer(self, ids: list[int]) -> str:
        model: Any = self._model
        device = next(model.parameters()).device
        pad = self._tokenizer.pad_token_id
        config = GenerationConfig(
            max_new_tokens=_LONGEST_ANSWER,
            do_sample=False,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.eos_token_id if pad is None else pad,
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        )
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                inputs = torch.tensor([ids], device=device)
                made = model.generate(
                    input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
                )[0]
        finally:
            model.train(training)
        begin = 0 if model.config.is_encoder_decoder else len(ids)
        return str(self._tokenizer.decode(made[begin:], skip_special_tokens=True))


def read_samples(file: Path) -> list[dict[str, Any]]:
    """All answers; empty where there are none. A line that cannot be read is left out."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            document = parse_json(line)
        except ValueError:
            continue
        if isinstance(document, dict) and isinstance(document.get("step"), int):
            found.append(document)
    return found
