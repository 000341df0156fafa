"""Text rows adapt the language model alone: towers for images and sound stay out of the targets."""

import pytest
import torch
import transformers as tf

from gora.errors import InputError
from gora.models.encoders import refuse_no_language_model
from gora.models.language import in_language
from gora.models.targets import find_targets

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def llava():
    return tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT).to_dict(), vision_config=tf.CLIPVisionConfig(**VISION).to_dict()
    )


def gemma3():
    text = tf.Gemma3TextConfig(**TEXT, head_dim=16)
    return tf.Gemma3Config(text_config=text.to_dict(), vision_config=tf.SiglipVisionConfig(**VISION).to_dict())


def idefics3():
    return tf.Idefics3Config(
        text_config=tf.LlamaConfig(**TEXT).to_dict(), vision_config={**VISION, "image_size": 32, "patch_size": 8}
    )


def qwen2_audio():
    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    return tf.Qwen2AudioConfig(text_config=tf.Qwen2Config(**TEXT).to_dict(), audio_config=audio)


def empty(kind, config):
    with torch.device("meta"):
        return kind(config)


MODELS = {
    "llava": (tf.LlavaForConditionalGeneration, llava),
    "gemma3": (tf.Gemma3ForConditionalGeneration, gemma3),
    "idefics3": (tf.Idefics3ForConditionalGeneration, idefics3),
    "qwen2_audio": (tf.Qwen2AudioForConditionalGeneration, qwen2_audio),
}


@pytest.mark.parametrize("targets", ["attention", "all-linear", "q_proj", r".*(q|v)_proj"])
@pytest.mark.parametrize("name", MODELS)
def test_targets_lie_in_the_language_model(name, targets):
    kind, config = MODELS[name]
    model = empty(kind, config())
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    found = find_targets(model, targets)
    assert found
    assert all(id(module) in inside for module in found.values())
    everywhere = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(everywhere) > len(found)


def test_every_attention_layer_of_the_language_model_is_still_a_target():
    model = empty(*[MODELS["llava"][0], llava()])
    assert len(find_targets(model, "attention")) == 2 * 4


def test_a_layer_that_only_a_tower_has_is_refused_by_name():
    model = empty(tf.LlavaForConditionalGeneration, llava())
    with pytest.raises(InputError, match="'fc1' names no linear layer"):
        find_targets(model, ["fc1"])


def test_all_of_a_plain_model_is_its_language_model(llama, t5):
    for model in (llama, t5):
        assert all(map(in_language(model), dict(model.named_modules())))


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (qwen2_audio, "no causal language model, only one that reads images or sound"),
        (
            lambda: tf.CLIPTextConfig(),
            "type clip_text_model, for which transformers has no causal language model. Name",
        ),
        (
            lambda: tf.SpeechT5Config(),
            "type speecht5, for which transformers has no encoder-decoder language model. Name",
        ),
    ],
)
def test_a_model_that_is_no_language_model_is_refused_by_its_type(config, what):
    with pytest.raises(InputError, match=what):
        refuse_no_language_model("one", config())


def test_language_models_and_models_with_code_of_their_own_are_not():
    refuse_no_language_model("one", tf.LlamaConfig())
    refuse_no_language_model("one", tf.T5Config())
    own = tf.CLIPTextConfig()
    own.auto_map = {"AutoModelForCausalLM": "modeling.Own"}
    refuse_no_language_model("one", own)
