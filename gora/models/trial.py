"""A trial pass of a loaded model over one row: what its loss is the loss of, before anything is learned from it.

Transformers builds language models that are none under the settings of a checkpoint: encoders that see the tokens which
they are asked to predict, and decoders whose loss compares each token with itself. Both train without a word, to a loss
that means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from gora.errors import InputError
from gora.models.encoders import longest_input

Batch = dict[str, Tensor]
Forward = Callable[[Batch], Any]
"""The model's output for a batch, with `loss` and `logits`, as training computes it."""

_SHORTEST, _PADDED = 4, 3
# Shares of the largest logit and of the loss that rounding explains, in float32 and in shorter types.
_ROUNDING = {torch.float32: 1e-4}
_COARSE_ROUNDING = 0.02


def row_to_try(lengths: Sequence[int]) -> int:
    """The shortest row that is long enough to tell something, or the longest; its index."""
    return min(range(len(lengths)), key=lambda index: (lengths[index] < _SHORTEST, abs(lengths[index] - _SHORTEST)))


class _NoLogitsError(Exception):
    """A model that fuses its loss with its output layer has nothing to compare."""


def try_out(name: str, model: nn.Module, forward: Forward, row: Batch, *, padding: int, tolerance: float) -> list[str]:
    """Compute the loss of one row, and compare it with what it should be.

    Args:
        name: what the user calls the model.
        model: loaded, in evaluation mode, not wrapped.
        forward: computes it; parameters and generators of random numbers are left as they are.
        row: a batch of one row; see `Collator` and `LabelCollator`.
        padding: the id that pads inputs.
        tolerance: see `rounding`.

    Returns:
        Remarks, one sentence each, on what is unusual and no reason to stop.

    Raises:
        InputError: the model cannot compute the loss, has weights that are not finite, computes the loss of other
            tokens, or sees the tokens it predicts.
    """
    what = f"model {name!r} ({type(model).__name__})"
    config: Any = model.config
    try:
        with torch.no_grad(), torch.random.fork_rng(_accelerators(model)):
            if not _finite_in_training(model, forward, row):
                _refuse_broken_weights(what, model)
            if "pixel_values" in row:
                loss, logits = _figures(forward(row))
                return _other_terms(loss, cross_entropy(logits, row["labels"]), tolerance)
            if row["labels"].dim() == 1:
                return _classifier(model, forward, row, padding, tolerance)
            if config.is_encoder_decoder:
                return _encoder_decoder(what, forward, row, tolerance)
            return _causal(what, forward, row, tolerance)
    except _NoLogitsError:
        return []
    except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # a model's code can fail in any way on text alone
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "an image" if "pixel_values" in row else "a row of text"
        raise InputError(
            f"{what} cannot compute the loss of {kind} ({type(error).__name__}: {first.rstrip('.')}). Give "
            "another model."
        ) from error


def rounding(dtype: torch.dtype) -> float:
    """The share of a figure that rounding explains in arithmetic of a type."""
    return _ROUNDING.get(dtype, _COARSE_ROUNDING)


def _finite_in_training(model: nn.Module, forward: Forward, row: Batch) -> bool:
    """Whether the loss is finite; some models take fewer texts, or other inputs, in training than in evaluation."""
    model.train()
    try:
        return bool(forward(row).loss.isfinite().all())
    finally:
        model.eval()


def _refuse_broken_weights(what: str, model: nn.Module) -> None:
    """A loss that is not finite may be the row's fault; weights that are not finite are the model's."""
    broken = [
        name
        for name, value in model.named_parameters()
        if value.is_floating_point() and not value.float().isfinite().all()
    ]
    if broken:
        some = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise InputError(
            f"{what}: {len(broken)} of its weights hold NaN or infinity ({some}). Download the model again, or give "
            "another one."
        )


def _causal(what: str, forward: Forward, row: Batch, tolerance: float) -> list[str]:
    ids = row["input_ids"]
    batch = {**row, "labels": ids}
    loss, logits = _figures(forward(batch))
    if logits.shape[:2] != ids.shape:
        raise InputError(f"{what} returns logits {tuple(logits.shape)} for {ids.shape[1]} tokens. Give another model.")
    of_next, of_same = _entropy(logits[:, :-1], ids[:, 1:]), _entropy(logits, ids)
    if _off(loss, of_next) > tolerance > _off(loss, of_same):
        raise InputError(
            f"{what} computes the loss of each token itself and not of the next one: it would learn to copy. Decoders "
            "of encoder-decoders do so alone; give the whole encoder-decoder, or another model."
        )
    if ids.shape[1] >= _SHORTEST and _looks_ahead(
        logits, forward({**batch, "input_ids": _changed(ids, -1)}), tolerance
    ):
        raise InputError(
            f"{what} sees the tokens that it would be trained to predict: it reads a text in both directions. Give a "
            "causal model, or is_decoder: true in its config.json if it was trained as one."
        )
    return _other_terms(loss, of_next, tolerance)


def _encoder_decoder(what: str, forward: Forward, row: Batch, tolerance: float) -> list[str]:
    # Labels of another length than the inputs show where the decoder gets its own inputs from.
    labels = row["labels"]
    labels = labels[:, :-1] if labels.shape[1] == row["input_ids"].shape[1] > 1 else labels
    batch = {**row, "labels": labels}
    loss, logits = _figures(forward(batch))
    if logits.shape[:2] != labels.shape:
        raise InputError(
            f"{what} does not make its decoder's inputs of the labels: logits {tuple(logits.shape)} for "
            f"{labels.shape[1]} of them. Give another model."
        )
    if labels.shape[1] >= _SHORTEST and _looks_ahead(
        logits, forward({**batch, "labels": _changed(labels, -2)}), tolerance
    ):
        raise InputError(
            f"{what}: its decoder sees the tokens that it would be trained to predict. Give another model."
        )
    return _other_terms(loss, _entropy(logits, labels), tolerance)


def _classifier(model: nn.Module, forward: Forward, row: Batch, padding: int, tolerance: float) -> list[str]:
    loss, logits = _figures(forward(row))
    remarks = _other_terms(loss, cross_entropy(logits, row["labels"]), tolerance)
    room = longest_input(model)
    if room is not None and row["input_ids"].shape[1] + _PADDED > room:
        return remarks
    fillers = {"input_ids": padding, "attention_mask": 0, "token_type_ids": 0}
    padded = forward(row | {key: pad(row[key], (0, _PADDED), value=fillers[key]) for key in fillers if key in row})
    if (logits - padded.logits.float()).abs().max() > tolerance * logits.abs().max():
        remarks.append(
            "Padding changes the answers of this model, so that they depend on the rows that share a micro-batch. "
            "Micro-batches of one row (train.micro_batch_size, evaluation.micro_batch_size) avoid that."
        )
    return remarks


def _figures(output: Any) -> tuple[Tensor, Tensor]:
    """Loss and logits, float32."""
    if output.logits is None:
        raise _NoLogitsError
    return output.loss.float(), output.logits.float()


def _looks_ahead(logits: Tensor, other: Any, tolerance: float) -> bool:
    """Whether most positions before the last know of a change in the last; a mixture's router may turn single ones."""
    difference = (logits - other.logits.float()).abs().amax(dim=(0, 2))[:-1]
    return bool(difference.median() > tolerance * logits.abs().max())


def _changed(ids: Tensor, position: int) -> Tensor:
    """The same tokens, one of them replaced by another of them."""
    changed = ids.clone()
    others = ids[ids != ids[0, position]]
    changed[0, position] = others[0] if len(others) else (ids[0, position] + 1) % 2
    return changed


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def _off(loss: Tensor, expected: Tensor) -> float:
    return float((loss - expected).abs() / expected.abs())


def _other_terms(loss: Tensor, expected: Tensor, tolerance: float) -> list[str]:
    if not _off(loss, expected) > 10 * tolerance:
        return []
    return [
        f"The loss of this model is not the mean cross-entropy of its tokens ({loss:.4f} instead of {expected:.4f} for "
        "one row): it has terms of its own, which training and evaluation include."
    ]


def _accelerators(model: nn.Module) -> list[torch.device]:
    devices = {parameter.device for parameter in model.parameters()}
    return [device for device in devices if device.type == "cuda"]
