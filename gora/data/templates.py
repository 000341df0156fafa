"""Chat templates: the tokenizer's own, two that ship with gora, and a Jinja file."""

from pathlib import Path
from typing import TYPE_CHECKING

from gora.data.messages import did_you_mean, quoted, siblings_like
from gora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN = """\
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- message['content'] + '\\n\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'User: ' + message['content'] + '\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'Assistant: ' + message['content'] + eos_token + '\\n' -}}
    {%- else -%}
        {{- raise_exception('it has no place for a message of role ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Assistant:' -}}
{%- endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

BUILT_IN = {"plain": _PLAIN, "chatml": _CHATML}


def named_template(name: str | None, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """The Jinja text of a chat template, and what messages call it.

    A built-in template starts with the beginning-of-sequence token where the tokenizer puts one in front of every text,
    so that a server which renders the template sends what was trained.

    Args:
        name: `data.chat_template`: a built-in name, a Jinja file, or None for the tokenizer's own.
        tokenizer: gives its own template, and says whether it puts a token in front.

    Raises:
        InputError: the tokenizer has no template and none is named, or the file cannot be read.
    """
    if name is None:
        return _own_template(tokenizer), "tokenizer's chat template"
    if name in BUILT_IN:
        front = "{{- bos_token -}}\n" if puts_bos_in_front(tokenizer) else ""
        return front + BUILT_IN[name], f"chat template {name!r}"
    return _file_template(name), f"chat template {name!r}"


def puts_bos_in_front(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer starts every text with its beginning-of-sequence token by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("x")["input_ids"])[:1] == [bos]


def _own_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    if not tokenizer.chat_template:
        raise InputError(
            "The tokenizer has no chat template. Name one with `data.chat_template`: `plain`, which fits every "
            "tokenizer, `chatml`, or a Jinja file."
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none is the default
        known = quoted(tokenizer.chat_template)
        raise InputError(
            f"The tokenizer has several chat templates ({known}) and no default. Save the one you want in a file and "
            "name it with `data.chat_template`."
        ) from error


def _file_template(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = did_you_mean(name, BUILT_IN) or siblings_like(name) or "."
        raise InputError(
            f"data.chat_template {name!r} is neither one of {quoted(BUILT_IN)} nor a file that exists{near}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.chat_template {name!r} cannot be read: {error}.") from error
