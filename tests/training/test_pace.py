"""What a line of metrics says about speed."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from gora.runtime.machine import bf16_peak
from gora.training import pace as module
from gora.training.callbacks import pace_text
from gora.training.loader import Waited
from gora.training.pace import Pace, operations_per_token


@pytest.fixture
def clock(monkeypatch):
    times = iter(range(100))
    monkeypatch.setattr(module, "perf_counter", lambda: float(next(times)))


def test_a_lap_counts_from_the_last_one(clock):
    waited = Waited(total=7.0)
    pace = Pace(nn.Linear(2, 2), torch.device("cpu"), processes=1, waited=waited)  # begins at 0
    pace.add(300, 400)
    waited.total += 0.25
    assert pace.lap() == {"tokens_per_second": 300.0, "computed_per_second": 400.0, "waiting": 0.25}  # at 1
    pace.add(50, 50)
    assert pace.lap() == {"tokens_per_second": 50.0, "computed_per_second": 50.0, "waiting": 0.0}


@pytest.mark.parametrize("tied", [False, True])
def test_operations_are_those_of_a_counting_run(tied):
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    ids = torch.arange(10)[None]
    # Weights are frozen, but a gradient goes through all of them to the embedded tokens.
    embedded = model.get_input_embeddings()(ids).requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded, labels=ids).loss.backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for kind, count in counted.items() if "bmm" not in str(kind) and "attention" not in str(kind))
    norms = sum(value.numel() for value in model.parameters() if value.ndim == 1)
    assert 10 * (operations_per_token(model) - 4 * norms) == products


def test_weights_that_are_trained_count_with_their_own_gradient():
    layer = nn.Linear(3, 5, bias=False)
    assert operations_per_token(layer) == 6 * 15
    assert operations_per_token(layer.requires_grad_(False)) == 4 * 15


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", None),
        ("Some other GPU", None),
    ],
)
def test_a_gpu_is_known_by_its_name_or_has_no_peak(name, peak):
    assert bf16_peak(name) == peak


def test_a_lap_is_said_in_words():
    lap = {"tokens_per_second": 900.0, "computed_per_second": 1200.0, "waiting": 0.012}
    assert pace_text(lap) == "900 tokens/s, 1,200 with padding, 1.2% waiting for rows"
    more = {**lap, "computed_per_second": 900.0, "peak_share": 0.41, "gpu_bytes": 31_100_000_000}
    assert pace_text(more) == "900 tokens/s, 41% of the bf16 peak, 1.2% waiting for rows, GPU 31.1 GB"
