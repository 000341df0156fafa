"""Passes that are recorded give what passes give that are not, with recordings that compute in place of CUDA graphs."""

from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from gora.data.collate import Collator
from gora.models.recorded import RecordedBlocks, differs
from gora.models.rows_apart import forward, set_apart
from gora.models.supervised_head import use_supervised_head
from gora.runtime.cuda_graphs import recorded_into, where_recordings_are_made
from gora.runtime.world import World
from gora.training.batches import StepCollator
from gora.training.recording import RecordedSteps
from tests.helpers.recorded import recording_on_a_cpu

CONFIG = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def recordings(monkeypatch):
    """Shapes that were recorded."""
    return recording_on_a_cpu(monkeypatch)


def built():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**CONFIG, **HEADS))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "down_proj"], r=3))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    ids = [list(range(3, 20)), list(range(30, 41))]
    assert set_apart(base, ids, torch.autocast("cpu", enabled=False)) == ""
    assert use_supervised_head(base, ids, torch.autocast("cpu", enabled=False)) == ""
    return model


def step_of(generator, micro_batches):
    rows = []
    for lengths in micro_batches:
        ids = [torch.randint(1, 64, (length,), generator=generator).tolist() for length in lengths]
        rows.append([{"input_ids": each, "labels": [-100] * 2 + each[2:]} for each in ids])
    return StepCollator(Collator(0), True)(rows)


def run(model, step):
    losses = []
    for batch in step["micro_batches"]:
        loss = forward(model, batch, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
    return losses


def test_gradients_and_losses_are_those_of_passes_that_are_not_recorded(recordings):
    plain, model = built(), built()
    trained = [value for value in model.parameters() if value.requires_grad]
    steps = RecordedSteps(model.get_base_model(), trained, 200, World())
    generator = torch.Generator().manual_seed(1)
    for micro_batches in ([[30, 50, 7], [64, 64]], [[20, 31, 36], [90, 40]], [[64, 20], [12, 40, 29]]):
        step = step_of(generator, micro_batches)
        expected = run(plain, step)
        with steps.step():
            found = run(model, step)
        assert found == pytest.approx(expected, rel=1e-5)
        for mine, other in zip(trained, (v for v in plain.parameters() if v.requires_grad), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
        plain.zero_grad()
        model.zero_grad()
    assert {shape.tokens for shape in recordings} == {128}


def test_lengths_are_filled_up_to_few_and_recorded_when_they_come_again(recordings):
    model = built()
    trained = [value for value in model.parameters() if value.requires_grad]
    steps = RecordedSteps(model.get_base_model(), trained, 64 * 32 * 2, World())
    generator = torch.Generator().manual_seed(2)
    counts = []
    for tokens in (100, 128, 129, 200, 256, 257):
        with steps.step():
            run(model, step_of(generator, [[tokens]]))
        counts.append(len(recordings))
    assert counts == [0, 1, 1, 2, 2, 2]


def test_where_few_lengths_are_wanted_rows_of_any_length_share_a_recording(recordings):
    model = built()
    trained = [value for value in model.parameters() if value.requires_grad]
    steps = RecordedSteps(model.get_base_model(), trained, 64 * 32, World(), lengths=4)
    generator = torch.Generator().manual_seed(2)
    for lengths in ([300, 40], [90, 60, 30], [200], [10, 8, 9]):
        with steps.step():
            run(model, step_of(generator, [lengths]))
    assert {shape.tokens for shape in recordings} == {512} and len(recordings) == 1


def test_without_memory_passes_go_on_unrecorded(recordings, monkeypatch):
    model, told = built(), []
    trained = [value for value in model.parameters() if value.requires_grad]

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(RecordedBlocks, "_record", fail)
    blocks = RecordedBlocks(
        model.get_base_model().base_model, trained, [torch.zeros_like(v) for v in trained], 64, told.append
    )
    ids, positions = torch.arange(1, 31)[None], torch.arange(30)[None]
    first, second, third = (blocks(ids, positions, (30,)) for _ in range(3))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert told == ["recorded  no: no memory for it"]


def test_rows_of_one_length_are_recorded_as_they_are(recordings):
    plain, model = built(), built()
    trained = [value for value in model.parameters() if value.requires_grad]
    steps = RecordedSteps(model.get_base_model(), trained, 200, World())
    generator = torch.Generator().manual_seed(3)
    for number in range(3):
        ids = torch.randint(1, 64, (4, 30), generator=generator)
        plain(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss.backward()
        with steps.step():
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for mine, other in zip(trained, (v for v in plain.parameters() if v.requires_grad), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
        plain.zero_grad()
        assert len(recordings) == (number > 0)


def test_what_is_released_is_not_recorded_again(recordings):
    model = built()
    steps = RecordedSteps(model.get_base_model(), [v for v in model.parameters() if v.requires_grad], 200, World())
    generator = torch.Generator().manual_seed(4)
    for number in range(4):
        with steps.step():
            run(model, step_of(generator, [[40, 20]]))
        assert steps.recordings == (number == 1)
        if number == 1:
            steps.release()
    assert len(recordings) == 1


def test_rounding_is_no_other_result_and_one_token_of_another_row_is():
    states = torch.randn(4, 1000, 64, generator=torch.Generator().manual_seed(3))
    assert not differs(states.bfloat16(), states)
    assert not differs(states * (1 + 0.02 * torch.randn_like(states)), states)
    swapped = states.clone()
    swapped[2, 7] = states[1, 7]
    assert differs(swapped, states)


class Streams:
    """Stands for the streams of a GPU: which one is current, and what each has waited for."""

    def __init__(self, monkeypatch):
        self.current, self.made, self.waits = "default", [], []
        monkeypatch.setattr("gora.runtime.cuda_graphs._stream", lambda: Stream("recordings", self))
        monkeypatch.setattr("torch.cuda.current_stream", lambda: Stream(self.current, self))
        monkeypatch.setattr("torch.cuda.set_stream", lambda stream: setattr(self, "current", stream.name))
        monkeypatch.setattr("torch.cuda.stream", self.on)

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before


class Stream:
    def __init__(self, name, streams):
        self.name, self._streams = name, streams

    def wait_stream(self, other):
        self._streams.waits.append((self.name, other.name))


@pytest.mark.parametrize("inner", [None, "host memory is not pinned"], ids=["at its end", "within"])
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_recording_that_fails_leaves_neither_its_memory_nor_its_stream_and_says_what_failed_first(
    monkeypatch, goes_on, inner
):
    calls, modes, streams = [], [], Streams(monkeypatch)

    @contextmanager
    def failing(graph, pool, stream, capture_error_mode):
        modes.append(capture_error_mode)
        streams.current = stream.name
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def end(device, pool):
        calls.append(("end", device, pool))
        if not goes_on:
            raise RuntimeError("not currently recording to mempool_id")

    monkeypatch.setattr("torch.cuda.graph", failing)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    monkeypatch.setattr("torch._C._cuda_endAllocateToPool", end)
    monkeypatch.setattr("torch._C._cuda_releasePool", lambda *where: calls.append(("release", *where)))
    with pytest.raises(RuntimeError, match=inner or "previous error"), recorded_into(object(), (0, 7)):
        assert streams.current == "recordings"
        if inner:
            raise RuntimeError(inner)
    assert calls == [("end", 3, (0, 7)), ("release", 3, (0, 7))][: 1 + goes_on]
    assert modes == ["thread_local"]
    assert streams.current == "default"


def test_what_runs_where_recordings_are_made_follows_what_was_before_and_comes_before_what_is_next(monkeypatch):
    streams = Streams(monkeypatch)
    with pytest.raises(KeyError), where_recordings_are_made():
        assert streams.current == "recordings"
        assert streams.waits == [("recordings", "default")]
        raise KeyError
    assert streams.waits[1:] == [("default", "recordings")]
