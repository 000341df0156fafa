"""Generation with transformers: prompts of similar length together, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from gora.data.collate import Collator, padding_id
from gora.data.encode import IGNORED
from gora.evaluation.task import Sampling
from gora.models.encoders import longest_input
from gora.models.new_tokens import embedding_rows


def without_adapter(model: PreTrainedModel | PeftModel, base: bool) -> AbstractContextManager[Any]:
    """A block in which the adapter is left out, if `base` says so and there is one."""
    return model.disable_adapter() if base and isinstance(model, PeftModel) else nullcontext()


@dataclass
class Generator:
    """Answers prompts of token ids; a `Backend`.

    Attributes:
        model: generates, with its adapter if it has one.
        tokenizer: the model's.
        batch_size: prompts at a time; halved when memory runs out.
        cut_short: prompts that left less room in the model's context than the longest answer asked for.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    cut_short: int = 0

    def __post_init__(self) -> None:
        # An adapter's layers stay within the model that it was put round.
        inner: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self._inner = inner
        self._own = cast(Any, self._inner.generation_config)
        end = self._own.eos_token_id
        listed = end if isinstance(end, list) else [end]
        self._pad = padding_id(self.tokenizer, embedding_rows(inner))
        self._longest = None if inner.config.is_encoder_decoder else longest_input(inner)
        self._ends = sorted({*listed, self.tokenizer.eos_token_id} - {None})

    @property
    def facts(self) -> dict[str, Any]:
        """See `Backend`."""
        return {"backend": "hf", "batch_size": self.batch_size, "cut_short": self.cut_short}

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None], *, base: bool
    ) -> list[list[str]]:
        """Texts that go on from the prompts, `sampling.samples` of each; one without room for a token gets "".

        Args:
            prompts: token ids.
            sampling: how to choose tokens; its seed is set before the first batch.
            advance: told how many prompts are done more, and how many tokens were generated.
            base: leave the adapter out.
        """
        with without_adapter(self.model, base):
            return self._generate(prompts, sampling, advance)

    @torch.inference_mode()
    def likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int, int], None], *, base: bool
    ) -> list[float]:
        """Log-likelihoods of answers in nats, computed in float32 from the model's logits.

        Args:
            pairs: token ids of a prompt and of an answer; where they do not fit the context, the prompt's first go.
            advance: told how many pairs are done more, and how many tokens were read.
            base: leave the adapter out.
        """
        with without_adapter(self.model, base):
            return self._likelihoods(pairs, advance)

    @torch.inference_mode()
    def stream(self, prompt: list[int], sampling: Sampling, say: Callable[[str], None], *, base: bool) -> str:
        """One answer, told piece by piece as it comes.

        Args:
            prompt: token ids.
            sampling: how to choose tokens; its seed is not used, so that a repeated question may get another answer.
            say: gets each new piece of text.
            base: leave the adapter out.

        Returns:
            The whole answer; "" without room for a token.
        """
        room = self.room(len(prompt), sampling.max_new_tokens)
        if room < 1:
            return ""
        self._inner.generation_config = self._config(sampling, room)
        ids = torch.tensor([prompt], device=self._inner.device)
        stops: dict[str, Any] = {}
        if sampling.stop:
            stops = {"stop_strings": list(sampling.stop), "tokenizer": self.tokenizer}
        pieces = _Pieces(lambda answer: self._text(prompt, answer, sampling.stop), say)
        with without_adapter(self.model, base):
            self._inner.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=pieces, **stops)
        return pieces.text

    @contextmanager
    def lent(self, *, base: bool, own_settings: bool) -> Iterator[PreTrainedModel | PeftModel]:
        """The model, for something else to generate with.

        Args:
            base: leave the adapter out.
            own_settings: with what the model itself says of generation (a penalty, say); else plain greedy decoding.
        """
        self._inner.generation_config = self._own if own_settings else self._config(Sampling(max_new_tokens=1), None)
        with without_adapter(self.model, base):
            yield self.model

    def room(self, width: int, wanted: int) -> int:
        """How many of `wanted` tokens the context has room for behind a prompt of `width` tokens."""
        return wanted if self._longest is None else min(wanted, self._longest - width)

    def _generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None]
    ) -> list[list[str]]:
        torch.manual_seed(sampling.seed)
        # The longest first: if memory does not suffice, that shows at once.
        waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        answers: list[list[str]] = [[] for _ in prompts]
        while waiting:
            size = max(1, self.batch_size // sampling.samples)
            batch = waiting[:size]
            try:
                texts, tokens = self._batch([prompts[index] for index in batch], sampling)
            except torch.OutOfMemoryError:
                if self.batch_size == 1 or size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                continue
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text
            waiting = waiting[size:]
            advance(len(batch), tokens)
        return answers

    def _likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int, int], None]
    ) -> list[float]:
        waiting = sorted(range(len(pairs)), key=lambda index: -sum(map(len, pairs[index])))
        found = [0.0] * len(pairs)
        while waiting:
            batch = waiting[: self.batch_size]
            try:
                values = self._likelihood([pairs[index] for index in batch])
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                continue
            for index, value in zip(batch, values, strict=True):
                found[index] = value
            waiting = waiting[len(batch) :]
            advance(len(batch), sum(len(ids) for index in batch for ids in pairs[index]))
        return found

    def _likelihood(self, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
        """Of one batch, padded on the right, where causal attention does not look."""
        if self._inner.config.is_encoder_decoder:
            examples = [{"input_ids": prompt, "labels": answer} for prompt, answer in pairs]
        else:
            rows = [((prompt + answer), len(answer)) for prompt, answer in pairs]
            kept = [(ids if self._longest is None else ids[-self._longest :], length) for ids, length in rows]
            examples = [
                {"input_ids": ids, "labels": [IGNORED] * (len(ids) - length) + ids[len(ids) - length :]}
                for ids, length in kept
            ]
        batch = Collator(self._pad, self._inner.config.is_encoder_decoder)(examples)
        inputs = {key: value.to(self._inner.device) for key, value in batch.items()}
        # A decoder is told what comes before each label; a causal model would compute a loss that nobody needs.
        labels = inputs["labels"] if self._inner.config.is_encoder_decoder else inputs.pop("labels")
        logits = self._inner(**inputs).logits
        if not self._inner.config.is_encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]
        # Only answers need probabilities of all words: a batch of whole prompts would hold gigabytes of them.
        places = labels != IGNORED
        told = logits[places].float().log_softmax(dim=-1).gather(1, labels[places][:, None])[:, 0]
        sums = torch.zeros(len(pairs), device=told.device, dtype=told.dtype)
        return sums.index_add_(0, places.nonzero()[:, 0], told).tolist()

    def _batch(self, prompts: list[list[int]], sampling: Sampling) -> tuple[list[list[str]], int]:
        width = max(len(ids) for ids in prompts)
        room = self.room(width, sampling.max_new_tokens)
        if room < sampling.max_new_tokens:
            self.cut_short += len(prompts)
        if room < 1:
            return [[""] * sampling.samples for _ in prompts], 0
        pad = self._pad
        device = self._inner.device
        ids = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
        # The model's own settings (a temperature, say) would otherwise fill in what is not said here.
        self._inner.generation_config = self._config(sampling, room)
        stops: dict[str, Any] = {}
        if sampling.stop:
            stops = {"stop_strings": list(sampling.stop), "tokenizer": self.tokenizer}
        made = self._inner.generate(input_ids=ids, attention_mask=mask, **stops)
        if not self._inner.config.is_encoder_decoder:
            made = made[:, width:]
        rows = made.tolist()
        texts = [
            [
                self._text(prompt, rows[number * sampling.samples + sample], sampling.stop)
                for sample in range(sampling.samples)
            ]
            for number, prompt in enumerate(prompts)
        ]
        return texts, int((made != pad).sum())

    def _config(self, sampling: Sampling, room: int | None) -> GenerationConfig:
        draws = sampling.temperature > 0
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=draws,
            num_return_sequences=sampling.samples,
            **({"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if draws else {}),
            pad_token_id=self._pad,
            bos_token_id=self._own.bos_token_id,
            eos_token_id=self._ends,
            decoder_start_token_id=self._own.decoder_start_token_id,
        )

    def _text(self, prompt: list[int], answer: list[int], stop: tuple[str, ...]) -> str:
        """Decoded behind its prompt: a decoder drops the spaces at the start of a text."""
        front = [] if self._inner.config.is_encoder_decoder else prompt
        whole = self._decoded(front + answer)
        text = whole[len(self._decoded(front)) :]
        places = [place for mark in stop if (place := text.find(mark)) >= 0]
        return text[: min(places)] if places else text

    def _decoded(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


class _Pieces(BaseStreamer):
    """Says what is new of a growing answer; half a character waits for its other half."""

    def __init__(self, text_of: Callable[[list[int]], str], say: Callable[[str], None]) -> None:
        self._text_of, self._say = text_of, say
        self._ids: list[int] = []
        self._has_prompt = False
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """The prompt comes first, or what a decoder begins with; then each token."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._ids += value.flatten().tolist()
        text = self._text_of(self._ids)
        if not text.endswith("\ufffd"):
            self._tell(text)

    def end(self) -> None:
        """Whatever is left."""
        self._tell(self._text_of(self._ids))

    def _tell(self, text: str) -> None:
        if len(text) > len(self.text):
            self._say(text[len(self.text) :])
            self.text = text
