"""Small tokenizers whose chat templates are built as those of public model families are.

The templates are written for these tests: they have the marks, the order and the habits of a family (where a system
message goes, what is trimmed, what becomes of reasoning), not its text.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's template.

    Attributes:
        template: Jinja.
        eos: the end-of-sequence token.
        bos: the token that the tokenizer puts in front of every text; None where there is none.
        marks: its other special tokens.
        writes: what the model has to write for an answer, given whether the answer is the last one.
        system: whether a system message has a place.
        separate: whether it writes earlier turns otherwise than the last one.
    """

    template: str
    eos: str
    bos: str | None = None
    marks: tuple[str, ...] = ()
    writes: Callable[[str, bool], str]
    system: bool = True
    separate: bool = False


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    """One token for each byte and each mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [name for name in (family.bos, family.eos, *family.marks) if name]
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    if family.bos:
        pair = (family.bos, made.token_to_id(family.bos))
        made.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[pair])
    named = {"bos_token": family.bos} if family.bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=family.eos, chat_template=family.template, model_max_length=10_000, **named
    )


def _ending(end: str, lead: str = "") -> Callable[[str, bool], str]:
    return lambda answer, last: f"{lead}{answer}{end}"


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set told = messages[0].content %}"
    "{% else %}{% set turns = messages %}{% set told = false %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and told %}<<SYS>>\n{{ told }}\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set told = messages[0].content | trim %}"
    "{% set turns = messages[1:] %}{% else %}{% set told = '' %}{% set turns = messages %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n{{ told }}<|eot_id|>"
    "{% for m in turns %}{% if m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "<|eot_id|>{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MISTRAL_1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant have a place') }}{% endif %}{% endfor %}"
)
_MISTRAL_3 = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{% set at = namespace(last=0) %}"
    "{% for m in turns %}{% if m.role == 'user' %}{% set at.last = loop.index0 %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == at.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {% if told is defined and loop.first %}{{ told }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}{{ call.function | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {\"content\": {{ m.content | tojson }}}[/TOOL_RESULTS]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
_QWEN_2 = (
    "<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}You help.{% endif %}"
    "{% if tools %}\n\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_3 = (
    "{% set at = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set at.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set text = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > at.last and (loop.last or thought) %}"
    "<think>\n{{ thought.strip('\\n') }}\n</think>\n\n{{ text.lstrip('\\n') }}{% else %}{{ text }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_VICUNA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set turns = messages[1:] %}"
    "{% else %}A chat with an assistant.{% set turns = messages %}{% endif %}{% for m in turns %}"
    "{% if m.role == 'user' %} USER: {{ m.content }}{% else %} ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
_COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if m.role == 'user' %}<|USER_TOKEN|>{% elif m.role == 'system' %}<|SYSTEM_TOKEN|>"
    "{% else %}<|CHATBOT_TOKEN|>{% endif %}{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
_FALCON = (
    "{% for m in messages %}{% if not loop.first %}\n\n{% endif %}"
    "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}User: {{ m.content | trim }}"
    "{% else %}Assistant: {{ m.content | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n\nAssistant:{% endif %}"
)
_HARMONY = (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for m in messages %}{% if m.role in ('system', 'developer') %}"
    "<|start|>developer<|message|># Instructions\n\n{{ m.content }}<|end|>"
    "{% elif m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% else %}{% if m.thinking and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

_IM = ("<|im_start|>",)

FAMILIES = {
    "chatml": Family(template=_CHATML, eos="<|im_end|>", marks=_IM, writes=_ending("<|im_end|>")),
    # A base model's tokenizer with a chat template: its end of a text is not the end of a turn.
    "chatml of a base model": Family(
        template=_CHATML, eos="<|endoftext|>", marks=(*_IM, "<|im_end|>"), writes=_ending("<|im_end|>")
    ),
    "llama-2": Family(template=_LLAMA_2, bos="<s>", eos="</s>", writes=_ending(" </s>", lead=" ")),
    "llama-3": Family(
        template=_LLAMA_3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        marks=("<|start_header_id|>", "<|end_header_id|>"),
        writes=_ending("<|eot_id|>"),
    ),
    "mistral-1": Family(
        template=_MISTRAL_1, bos="<s>", eos="</s>", writes=_ending("</s>", lead=" "), system=False
    ),
    "mistral-3": Family(
        template=_MISTRAL_3,
        bos="<s>",
        eos="</s>",
        marks=("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        writes=_ending("</s>", lead=" "),
    ),
    "gemma": Family(
        template=_GEMMA,
        bos="<bos>",
        eos="<eos>",
        marks=("<start_of_turn>", "<end_of_turn>"),
        writes=_ending("<end_of_turn>"),
        system=False,
    ),
    "phi-3": Family(
        template=_PHI_3,
        eos="<|endoftext|>",
        marks=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        writes=lambda answer, last: f"{answer}<|end|>" + ("\n<|endoftext|>" if last else ""),
    ),
    "qwen-2.5": Family(template=_QWEN_2, eos="<|im_end|>", marks=_IM, writes=_ending("<|im_end|>")),
    "qwen-3": Family(template=_QWEN_3, eos="<|im_end|>", marks=_IM, writes=_ending("<|im_end|>"), separate=True),
    "deepseek-r1": Family(
        template=_DEEPSEEK, bos="<|begin|>", eos="<|finish|>", marks=("<|User|>", "<|Assistant|>"),
        writes=_ending("<|finish|>"),
    ),
    "zephyr": Family(template=_ZEPHYR, bos="<s>", eos="</s>", writes=_ending("</s>")),
    "vicuna": Family(template=_VICUNA, bos="<s>", eos="</s>", writes=_ending("</s>", lead=" ")),
    "command-r": Family(
        template=_COMMAND_R,
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        marks=("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        writes=_ending("<|END_OF_TURN_TOKEN|>"),
    ),
    # No mark ends a turn.
    "falcon": Family(template=_FALCON, eos="<|endoftext|>", writes=_ending("", lead=" ")),
    "harmony": Family(
        template=_HARMONY,
        eos="<|return|>",
        marks=("<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        writes=lambda answer, last: f"<|channel|>final<|message|>{answer}{'<|return|>' if last else '<|end|>'}",
        separate=True,
    ),
}  # fmt: skip
