"""Exported adapters compute what the adapter computes, in the form that a runtime reads, or do not appear."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import gora.stages.export as stage
from gora.errors import GoraError, InputError
from gora.stages.export import export
from tests.conftest import TINY

TOKENS = torch.arange(2, 40).view(2, 19)
RANKS = {"layers.0.self_attn.q_proj": 1, "layers.1.self_attn.k_proj": 16, "layers.0.mlp.down_proj": 7}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base and an adapter with ranks of 1 to 4 times the reference, and layers without one; its logits."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder / "base")
    config = LoraConfig(
        r=4,
        lora_alpha=8 * 2**0.5,
        target_modules=[f"model.{name}" for name in RANKS] + ["model.layers.0.self_attn.k_proj"],
        rank_pattern={f"model.{name}": rank for name, rank in RANKS.items()},
        alpha_pattern={f"model.{name}": 8 * rank**0.5 for name, rank in RANKS.items()},
    )
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config).eval()
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
        logits = wrapped(input_ids=TOKENS).logits
    wrapped.save_pretrained(str(folder / "adapter"))
    return folder / "base", folder / "adapter", logits


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "adapter")


def rewrite(adapter, **settings):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("runtime", "form", "alpha"),
    [
        ("peft", "native", 8 * 2**0.5),
        ("vllm@0.32", "native", 8 * 2**0.5),
        ("vllm", "uniform", 16),
        ("sglang", "uniform", 16),
        ("tgi", "uniform", 16),
    ],
)
def test_peft_alone_computes_the_same_with_the_exported_adapter(made, tmp_path, runtime, form, alpha):
    base, adapter, expected = made
    result = export(adapter, runtime, tmp_path / "out")
    assert result.form == form
    config = PeftConfig.from_pretrained(str(tmp_path / "out"))
    assert config.lora_alpha == pytest.approx(alpha)
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")).eval()
    with torch.no_grad():
        assert torch.allclose(wrapped(input_ids=TOKENS).logits, expected, atol=1e-5, rtol=1e-5)
    if form == "uniform":
        assert (config.r, config.rank_pattern, config.alpha_pattern, config.use_rslora) == (16, {}, {}, False)
        assert set(config.target_modules) == {"q_proj", "k_proj", "down_proj"}
        # Two blocks of three kinds, whatever the adapter leaves out.
        assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 2 * 6


@pytest.mark.parametrize(
    ("runtime", "command"),
    [
        ("vllm", "vllm serve {base} --enable-lora --max-lora-rank 16 --lora-modules gora={out}"),
        ("vllm@0.33.1", "vllm serve {base} --enable-lora --max-lora-rank 16 --lora-modules gora={out}"),
        ("peft", None),
    ],
)
def test_the_command_of_the_server_comes_with_the_adapter(made, tmp_path, capsys, runtime, command):
    export(made[1], runtime, tmp_path / "out")
    expected = command and command.format(base=made[0], out=tmp_path / "out")
    assert read(tmp_path / "out" / "export.json")["command"] == expected
    printed = " ".join(capsys.readouterr().out.split())
    assert (expected or "form native") in printed


def test_the_files_for_mlx_are_the_factors_the_other_way_round(made, tmp_path):
    base, _, expected = made
    export(made[1], "mlx", tmp_path / "out")
    config = read(tmp_path / "out" / "adapter_config.json")
    keys = ["mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj"]
    assert config["lora_parameters"] == {"rank": 16, "scale": 1.0, "dropout": 0.0, "keys": keys}
    assert (config["fine_tune_type"], config["num_layers"]) == ("lora", 2)
    held = load_file(tmp_path / "out" / "adapters.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        for block in range(2):
            for key in keys:
                name = f"model.layers.{block}.{key}"
                # y = x W^T + scale (x a) b
                update = held[f"{name}.lora_a"] @ held[f"{name}.lora_b"]
                model.get_submodule(name).weight += config["lora_parameters"]["scale"] * update.T
        assert torch.allclose(model(input_ids=TOKENS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("runtime", ["llama.cpp", "ollama"])
def test_the_gguf_file_holds_what_llama_cpp_adds_to_the_weights(made, tmp_path, runtime):
    gguf = pytest.importorskip("gguf")
    base, _, expected = made
    export(made[1], runtime, tmp_path / "out")
    reader = gguf.GGUFReader(str(tmp_path / "out" / "adapter.gguf"))
    settings = {name: reader.get_field(name).contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert settings["general.type"] == "adapter"
    assert (settings["adapter.type"], settings["general.architecture"]) == ("lora", "llama")
    alpha = settings["adapter.lora.alpha"]
    assert alpha == int(alpha)
    held = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "ffn_down": "mlp.down_proj",
    }
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    added = 0
    with torch.no_grad():
        for block in range(2):
            for there, here in names.items():
                a, b = (held.get(f"blk.{block}.{there}.weight.lora_{part}") for part in "ab")
                if a is None:
                    continue
                update = alpha / b.shape[1] * b @ a
                if here.endswith(("q_proj", "k_proj")):
                    # llama.cpp's rows 2 i and 2 i + 1 of a head are transformers' rows i and i + size / 2.
                    heads = update.view(-1, 4, 2, 32)
                    update = torch.cat([heads[:, :, 0], heads[:, :, 1]], dim=1).reshape(update.shape)
                model.get_submodule(f"model.layers.{block}.{here}").weight += update
                added += 1
        assert torch.allclose(model(input_ids=TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    assert added == len(RANKS) + 1
    if runtime == "ollama":
        assert (tmp_path / "out" / "Modelfile").read_text() == f"FROM {base}\nADAPTER ./adapter.gguf\n"


def test_the_adapter_of_a_family_that_is_not_known_is_left_to_llama_cpp_s_converter(made, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "family_known", lambda _: False)
    result = export(made[1], "llama.cpp", tmp_path / "out")
    assert result.command == (
        f"python convert_lora_to_gguf.py {tmp_path / 'out'} --base {made[0]} --outfile {tmp_path / 'out'}/adapter.gguf"
    )
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).alpha_pattern == {}


def test_gguf_needs_its_package(made, tmp_path, monkeypatch):
    monkeypatch.setattr("gora.adapters.gguf.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"gora-finetune\[gguf\]"):
        export(made[1], "llama.cpp", tmp_path / "out")


def test_what_no_form_can_express_is_refused_with_every_reason_before_anything_is_loaded(copied, tmp_path, monkeypatch):
    monkeypatch.setattr("gora.adapters.base.find_model", lambda *_, **__: pytest.fail("a model was looked for"))
    rewrite(copied, use_dora=True, bias="all", init_lora_weights="pissa")
    with pytest.raises(InputError, match="cannot be exported for vllm") as refused:
        export(copied, "vllm@0.32", tmp_path / "out")
    assert {line.partition(":")[0] for line in refused.value.problems} == {"use_dora", "bias", "init_lora_weights"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("runtime", ["vllm", "vllm@0.32", "llama.cpp"])
def test_an_adapter_that_computes_something_else_is_not_kept(made, tmp_path, monkeypatch, runtime):
    pytest.importorskip("gguf")
    write = stage.write_lora

    def wrong(lora, folder):
        write(lora, folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        name = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"
        save_file(tensors | {name: 2 * tensors[name]}, folder / "adapter_model.safetensors")

    monkeypatch.setattr(stage, "write_lora", wrong)
    with pytest.raises(GoraError, match="it was not kept"):
        export(made[1], runtime, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_overwrite_replaces_an_exported_adapter_and_nothing_else(made, copied, tmp_path):
    export(made[1], "vllm", tmp_path / "out")
    with pytest.raises(InputError, match="Add --overwrite"):
        export(made[1], "peft", tmp_path / "out")
    export(made[1], "peft", tmp_path / "out", overwrite=True)
    assert read(tmp_path / "out" / "export.json")["form"] == "native"
    with pytest.raises(InputError, match="never replaced"):
        export(made[1], "peft", copied, overwrite=True)
    # What was exported can be exported again.
    export(tmp_path / "out", "sglang", tmp_path / "again")


def test_the_command_line_exports(made, tmp_path, gora_here):
    code, out, err = gora_here("export", made[1], "--for", "tgi", "--output", "out", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "form      uniform: TGI stacks the layers of each kind" in out
    code, _, err = gora_here("export", made[1], "--for", "nothing", "--output", "two", cwd=tmp_path)
    assert code == 2
    assert "must be one of peft, vllm" in err
