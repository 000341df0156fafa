"""Fenced code in Markdown, as models write it: with or without a language, in lists, never closed."""

import textwrap

from markdown_it import MarkdownIt

_PYTHON = ("py", "ipython")
_SESSION = (">>> ", "... ")


def fenced_blocks(text: str) -> list[str]:
    """The contents of all fenced blocks, those of other languages left out where some are Python or do not say.

    A block that is not closed runs to the end of the text. Prompts of an interactive session are taken away.
    """
    # Models indent fences as they please: four spaces would make a block of another kind of them.
    tokens = MarkdownIt().disable("code").parse(text)
    blocks = [(token.info.strip(" {.}").lower(), _code(token.content)) for token in tokens if token.type == "fence"]
    filled = [(language, code) for language, code in blocks if code.strip()]
    python = [code for language, code in filled if not language or language.startswith(_PYTHON)]
    return python or [code for _, code in filled]


def _code(content: str) -> str:
    code = textwrap.dedent(content).rstrip("\n")
    if code.lstrip().startswith(_SESSION[0]):
        code = "\n".join(line[4:] for line in code.splitlines() if line.startswith(_SESSION))
    return code
