"""The rules of runtimes: each is broken once, and the checker says so; an adapter in the right form breaks none."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from gora.adapters.forms import LoraTensors, compact, uniform
from gora.adapters.reading import form_refusals, misreadings
from gora.adapters.runtimes import RUNTIMES, find_runtime
from gora.errors import InputError

LAYERS = {f"model.layers.{block}.self_attn.{kind}": (6, 5) for block in range(2) for kind in ("q_proj", "v_proj")}
RANKS = dict(zip(LAYERS, (2, 3, 8, 2), strict=True))


def adapter(ranks=RANKS, rest=None, **settings):
    """Ranks and scales that differ from layer to layer, as GoRA's do."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=2,
        lora_alpha=22.627,
        target_modules=list(ranks),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != 2},
        alpha_pattern={name: 16 * rank**0.5 for name, rank in ranks.items() if rank != 2},
        base_model_name_or_path="base",
    )
    for key, value in settings.items():
        setattr(config, key, value)
    pairs = {name: (torch.randn(rank, 5), torch.randn(6, rank)) for name, rank in ranks.items()}
    return LoraTensors(config=config, pairs=pairs, rest=rest or {})


def update(lora, name, scale=None):
    a, b = lora.pairs[name]
    return (lora.scale(name) if scale is None else scale) * b.double() @ a.double()


@pytest.mark.parametrize("name", [*RUNTIMES, "vllm@0.31.2", "vllm@0.32.0", "vllm@1.0"])
def test_the_form_for_a_runtime_breaks_none_of_its_rules(name):
    runtime, lora = find_runtime(name), adapter(dict(list(RANKS.items())[:3]))
    assert form_refusals(lora, runtime) == []
    made = {"native": lora, "compact": compact(lora), "uniform": uniform(lora, LAYERS)}[runtime.form]
    assert misreadings(made, runtime, LAYERS) == []


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("vllm@0.31", "scales it"),
        ("vllm", "scales it"),
        ("sglang", "rank 3, where sglang expects r = 2"),
        ("tgi", "rank 3, where tgi expects r = 2"),
        ("mlx", "rank 3, where mlx expects r = 2"),
        ("llama.cpp", "scales it"),
        ("ollama", "reads a whole number"),
    ],
)
def test_the_native_form_is_misread(name, broken):
    assert any(broken in line for line in misreadings(adapter(), find_runtime(name), LAYERS))


def test_the_scale_that_is_told_is_what_llama_cpp_would_compute():
    lora = adapter()
    (told,) = [line for line in misreadings(lora, RUNTIMES["llama.cpp"], LAYERS) if "scales it" in line]
    # alpha / rank in place of 16 / sqrt(rank).
    assert "model.layers.1.self_attn.q_proj: llama.cpp scales it 0.5 times" in told
    assert "2 of 4 layers" in told


@pytest.mark.parametrize(
    ("name", "settings", "broken"),
    [
        ("sglang", {"use_rslora": True}, "scales it 0.707 times"),
        ("llama.cpp", {"use_rslora": True}, "scales it 0.707 times"),
        ("llama.cpp", {"lora_alpha": 0}, "0 means scale 1"),
        ("ollama", {"lora_alpha": 2.5}, "2.5: ollama reads a whole number"),
        ("sglang", {"target_modules": ["layers.0.q_proj"]}, "expects names"),
        ("sglang", {"target_modules": ".*q_proj"}, "expects names"),
        ("vllm@0.32", {"init_lora_weights": "pissa"}, "init_lora_weights"),
        ("vllm@0.32", {"use_dora": True}, "use_dora"),
        ("vllm@0.32", {"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ("tgi", {"modules_to_save": ["score"]}, "modules_to_save"),
        ("vllm@0.32", {"trainable_token_indices": [3]}, "trainable_token_indices"),
        ("vllm@0.32", {"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ("mlx", {"lora_bias": True}, "lora_bias"),
        ("llama.cpp", {"bias": "all"}, "bias"),
        ("peft", {"base_model_name_or_path": ""}, "does not name its base"),
    ],
)
def test_a_setting_that_a_runtime_does_not_read_is_named(name, settings, broken):
    plain = adapter(dict.fromkeys(LAYERS, 2), lora_alpha=4, target_modules=["q_proj", "v_proj"])
    runtime = find_runtime(name)
    assert misreadings(plain, runtime, LAYERS) == []
    for key, value in settings.items():
        setattr(plain.config, key, value)
    assert any(broken in line for line in misreadings(plain, runtime, LAYERS))


def test_a_classifier_s_head_is_read_by_vllm():
    plain = adapter(dict.fromkeys(LAYERS, 2), {"score.weight": torch.ones(2, 6)}, modules_to_save=["score"])
    assert misreadings(plain, find_runtime("vllm@0.32"), LAYERS) == []


def test_a_layer_that_is_missing_is_named_where_its_kind_would_be_dropped():
    lora = adapter(dict.fromkeys(list(LAYERS)[:3], 2), lora_alpha=4, target_modules=["q_proj", "v_proj"])
    for name in ("tgi", "mlx"):
        (told,) = misreadings(lora, RUNTIMES[name], LAYERS)
        assert told.startswith("model.layers.1.self_attn.v_proj: it has no pair")
    assert misreadings(lora, RUNTIMES["sglang"], LAYERS) == []


@pytest.mark.parametrize("name", [*RUNTIMES])
def test_tensors_that_say_nothing_are_named(name):
    runtime = RUNTIMES[name]
    zero = adapter()
    for _, b in zero.pairs.values():
        b.zero_()
    assert "every B is zero" in misreadings(zero, runtime)[0]
    empty = adapter()
    empty = replace(empty, pairs={**empty.pairs, "model.layers.9.q_proj": (torch.empty(0, 5), torch.empty(6, 0))})
    assert "of size zero" in misreadings(empty, runtime)[0]
    assert "belong to no pair" in misreadings(adapter(rest={"lora_embedding_A": torch.ones(1)}), runtime)[0]


def test_every_reason_is_given_at_once():
    lora = adapter(use_dora=True, bias="all", modules_to_save=["lm_head"])
    assert len(form_refusals(lora, RUNTIMES["tgi"])) == 3


def test_a_rank_above_all_that_vllm_keeps_room_for_is_refused():
    lora = adapter(dict.fromkeys(LAYERS, 513))
    assert form_refusals(lora, RUNTIMES["vllm"]) == ["rank 513: vllm takes 512 at most."]
    assert misreadings(lora, find_runtime("vllm@0.32"))[0] == "rank 513: vllm takes 512 at most."


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_alpha": 0.3}])
def test_the_update_of_each_layer_stays_what_it_was(settings):
    lora = adapter(**settings)
    whole, padded = compact(lora), uniform(lora, LAYERS)
    assert whole.config.lora_alpha == int(whole.config.lora_alpha) >= 1
    for name, (a, _) in lora.pairs.items():
        exact = update(lora, name)
        # What the runtimes compute, of which none is asked here.
        assert torch.allclose(update(whole, name, whole.config.lora_alpha / a.shape[0]), exact, rtol=1e-5, atol=1e-5)
        assert torch.allclose(update(padded, name, 1.0), exact, rtol=1e-5, atol=1e-5)
        assert padded.pairs[name][0].shape == (8, 5)


@pytest.mark.parametrize("named", ["triton", "sglang@0.5", "vllm@new", "vllm@", "vllm@0"])
def test_a_runtime_that_is_not_known_is_refused(named):
    with pytest.raises(InputError, match="--for"):
        find_runtime(named)


def test_the_rank_of_a_layer_is_that_of_its_tensor():
    config = SimpleNamespace(lora_alpha=8, alpha_pattern={}, use_rslora=False)
    lora = LoraTensors(config=config, pairs={"a": (torch.ones(4, 2), torch.ones(3, 4))}, rest={})
    assert (lora.scale("a"), lora.greatest_rank) == (2.0, 4)
