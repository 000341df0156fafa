"""The program in an answer: code in or without fences, with talk around it, with or without the signature asked for.

What cannot be understood comes back as it was, and fails when it is run.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence

from gora.evaluation.tasks.fences import fenced_blocks

_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[^\n]*\n?", re.MULTILINE)
_CODE_START = re.compile(r"(?:import|from)\s+\w|(?:async\s+)?def\s+\w|class\s+\w|#|[A-Za-z_]\w*\s*(?::[^=]+)?=[^=]")
_HARMLESS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_INDENT = "    "


def function_in(answer: str, prompt: str, name: str) -> str:
    """The module that an answer makes of a prompt which ends in an unfinished function.

    Args:
        answer: the whole function, with or without what stands before it in the prompt, or only what the prompt lacks.
        prompt: imports, helpers, a signature and a docstring.
        name: of the function.

    Returns:
        The prompt's imports and helpers, followed by the function.
    """
    code = code_in(answer, [name])
    at = _definition(code, [name])
    if at < 0:
        return _continued(prompt, code, name)
    before = prompt[: max(_definition(prompt, [name]), 0)]
    # These lines may stand at the top of a module only.
    future = "".join(_FUTURE.findall(code))
    return f"{future}{before}{_FUTURE.sub('', code)}"


def code_in(answer: str, names: Sequence[str]) -> str:
    """The code of an answer, without what is said before and after it.

    Args:
        answer: what a model said.
        names: functions or classes, one of which marks the right part.

    Returns:
        The first definition that is more than a stub, with what its fenced block holds besides, and with the
        definitions and imports of the blocks before; else the first block; else the answer.
    """
    text = answer.replace("\r\n", "\n")
    blocks = fenced_blocks(text)
    defining = [index for index, block in enumerate(blocks) if _definition(block, names) >= 0]
    if defining:
        chosen = next((index for index in defining if not _is_stub(blocks[index], names)), defining[0])
        helpers = [block for block in blocks[:chosen] if _only_defines(block)]
        return "\n\n".join([*helpers, _up_to_fault(blocks[chosen], names)])
    if _definition(text, names, anywhere=True) >= 0:
        return _up_to_fault(_from_first_code(text, names), names)
    return blocks[0] if blocks else text


def _definition(text: str, names: Sequence[str], *, anywhere: bool = False) -> int:
    """Where the first definition of one of the names begins, -1 where there is none.

    Args:
        text: code, or code among other text.
        names: functions or classes.
        anywhere: whether it may follow other words on its line.
    """
    one_of = "|".join(map(re.escape, names))
    form = rf"(?:async[ \t]+)?def[ \t]+(?:{one_of})[ \t]*\(|class[ \t]+(?:{one_of})\b|(?:{one_of})[ \t]*=[^=]"
    found = re.search(rf"^(?:{form})", text, re.MULTILINE) if names else None
    if found is None and anywhere and names:
        found = re.search(rf"(?:async[ \t]+)?\bdef[ \t]+(?:{one_of})[ \t]*\(", text)
    return -1 if found is None else found.start()


def _is_stub(code: str, names: Sequence[str]) -> bool:
    """Whether all that is defined is a signature, as where a question is repeated."""
    module = _parsed(code)
    if module is None:
        return False
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and statement.name in names:
            last = statement.body[-1]
            return isinstance(last, ast.Pass) or (isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant))
    return False


def _only_defines(code: str) -> bool:
    module = _parsed(code)
    return module is not None and all(isinstance(statement, _HARMLESS) for statement in module.body)


def _from_first_code(text: str, names: Sequence[str]) -> str:
    """From the definition on, together with the imports and helpers that stand directly before it."""
    at = _definition(text, names, anywhere=True)
    line_start = text.rfind("\n", 0, at) + 1
    indent = text[line_start:at]
    if indent and indent.isspace():
        return textwrap.dedent(text[line_start:])
    before, rest = text[:line_start].splitlines(), text[at:]
    while before and before[-1].startswith("@"):
        rest = f"{before.pop()}\n{rest}"
    if not indent:
        for start, line in enumerate(before):
            if _CODE_START.match(line) and _parsed("\n".join(before[start:])) is not None:
                return "\n".join([*before[start:], rest])
    return rest


def _up_to_fault(code: str, names: Sequence[str]) -> str:
    """The code before the statement that is none: talk after it, or where an answer was cut off.

    Whole statements of the module only are left out: a function with a fault in it stays faulty.
    """
    lines = code.splitlines()
    while lines and (fault := _faulty_line("\n".join(lines))) is not None:
        keep = min(fault, len(lines)) - 1
        while keep > 0 and (not lines[keep].strip() or lines[keep][0].isspace()):
            keep -= 1
        lines = lines[:keep]
    kept = "\n".join(_without_last_words(lines)) + "\n"
    return kept if _definition(kept, names) >= 0 else code


def _without_last_words(lines: list[str]) -> list[str]:
    """Drop what parses at the end but does nothing, such as a heading of one word."""
    module = _parsed("\n".join(lines))
    body = module.body if module is not None else []
    while body and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, ast.Name):
        lines = lines[: body.pop().lineno - 1]
    return lines


def _continued(prompt: str, code: str, name: str) -> str:
    """The prompt with a body that follows it, indented as the prompt is, whichever way the code is."""
    start = max(_definition(prompt, [name]), 0)
    found = re.search(r"^[ \t]+(?=\S)", prompt[start:], re.MULTILINE)
    indent = found[0] if found else _INDENT
    head = prompt.rstrip(" \t")
    head = head if head.endswith("\n") else head + "\n"
    for part in _parts(code.expandtabs(4).splitlines()):
        for body in _indentations(part, indent):
            if _parsed(head + body) is not None:
                return head + body
    return head + code


def _parts(lines: list[str]) -> Iterator[list[str]]:
    """The lines, then less and less of them: talk is left out by the paragraph, or where the indentation tells."""
    starts = [0] + [at for at in range(1, len(lines)) if _begins(lines, at)]
    ends = [len(lines)] + [at for at in range(len(lines) - 1, 0, -1) if not lines[at].strip() or _outdents(lines, at)]
    for start in starts:
        for end in ends:
            if any(line.strip() for line in lines[start:end]):
                yield lines[start:end]


def _begins(lines: list[str], at: int) -> bool:
    """Whether code may begin at a line: after an empty one, or indented after one that is not."""
    if not lines[at].strip():
        return False
    return not lines[at - 1].strip() or (_outdents(lines, at - 1) and lines[at][0].isspace())


def _outdents(lines: list[str], at: int) -> bool:
    return bool(lines[at].strip()) and not lines[at][0].isspace()


def _indentations(lines: list[str], indent: str) -> Iterator[str]:
    """The lines as a body: shifted as they are; with a first line that lost its indentation; and before module code."""
    yield textwrap.indent(textwrap.dedent("\n".join(lines)), indent) + "\n"
    first, rest = lines[0], "\n".join(lines[1:])
    yield f"{indent}{first.strip()}\n{rest}\n"
    outside = next((at for at in range(len(lines)) if _outdents(lines, at)), 0)
    if outside:
        inside = textwrap.indent(textwrap.dedent("\n".join(lines[:outside])), indent)
        yield "\n".join([inside, *lines[outside:]]) + "\n"


def _faulty_line(code: str) -> int | None:
    """The number of the first line that is no Python, counted from 1; None where all of them are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "answer", "exec", dont_inherit=True)
    except SyntaxError as error:
        return max(error.lineno or 1, 1)
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return 1
    return None


def _parsed(code: str) -> ast.Module | None:
    if _faulty_line(code) is not None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)
