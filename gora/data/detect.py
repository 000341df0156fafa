"""What rows look like: the format, columns and template that fit them, by the names and values of their columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gora.data.columns import is_empty
from gora.data.conversation import INSTRUCTING, ROLES
from gora.data.messages import described, quoted
from gora.data.reading import NOT_TEXT
from gora.data.rows import Unusable
from gora.data.segments import from_json
from gora.errors import InputError


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Usual names of columns, the likeliest first.
MESSAGES = _names("messages conversations conversation dialogue dialog chat turns")
PROMPTS = _names("instruction prompt question query problem input inputs user context source text")
RESPONSES = _names(
    "output response completion answer outputs target targets solution canonical_solution code reply summary "
    "translation assistant"
)
LABELS = _names("label labels category class sentiment intent coarse_label fine_label")
TEXTS = _names("text content document body article story")
_FIRST_TEXTS = _names("sentence1 premise question question1 sentence text review tweet title content")
_SECOND_TEXTS = _names("sentence2 hypothesis question2 sentence context text_pair passage")
_BESIDE = ("input", "system", "history")
"""Columns that Alpaca's template reads beside the prompt."""
_COMMON = 0.5
_MOST_LABELS = 64
_LONGEST_LABEL = 64
_SAID = "Say which: gora init MODEL DATA --set data.prompt=COLUMN --set data.response=COLUMN."


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What fits the rows.

    Attributes:
        data: settings of the recipe's `data` section that differ from its defaults.
        why: what was seen, in a few words, by setting.
        labels: whether a row has one of a few labels, so that a classifier can learn them.
    """

    data: Mapping[str, Any]
    why: Mapping[str, str] = field(default_factory=dict)
    labels: bool = False


def detect(rows: Sequence[Mapping[str, Any]], name: str, *, classifier: bool = False) -> Detected:
    """Find the format, columns and template that fit some rows.

    Args:
        rows: the first rows of a source, at least one.
        name: what messages call the source.
        classifier: the model predicts labels and writes no text.

    Raises:
        InputError: no format fits, or more than one does; with the columns and what to say.
    """
    columns = _common(rows)
    _refuse_pairs_of_answers(rows, columns, name)
    _refuse_parts_of_conversations(rows, columns, name)
    _refuse_images(columns, name)
    if classifier:
        return _classification(rows, columns, name)
    if column := _messages(rows, columns):
        return _chat(rows, column)
    answers = [column for column in RESPONSES if column in columns and _is_text(rows, column)]
    if not answers and (label := _label(rows, columns)):
        return _labelled(rows, columns, label, name)
    if answers and (prompt := _prompt(rows, columns, answers[0])):
        return _instruction(rows, columns, prompt, answers[0])
    if column := next((column for column in TEXTS if column in columns and _is_text(rows, column)), None):
        return _text(column)
    texts = [column for column in columns if _is_text(rows, column)]
    if len(texts) == 1 and len(columns) == 1:
        return _text(texts[0])
    raise _unknown(rows, columns, texts, name)


def _common(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that have a value in most rows, in the order of their first row."""
    filled = Counter(column for row in rows for column, value in row.items() if not is_empty(value))
    return [column for column, count in filled.items() if count >= _COMMON * len(rows)]


def _values(rows: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
    return [row[column] for row in rows if not is_empty(row.get(column))]


def _is_text(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether most of its values are texts; rows with another one are refused where they stand."""
    values = _values(rows, column)
    return sum(isinstance(value, str) for value in values) > _COMMON * len(values)


def _messages(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str | None:
    """The column that holds conversations; usual names first."""
    ordered = [*(name for name in MESSAGES if name in columns), *(name for name in columns if name not in MESSAGES)]
    return next((column for column in ordered if _conversations(rows, column)), None)


def _conversations(rows: Sequence[Mapping[str, Any]], column: str) -> list[list[Mapping[str, Any]]]:
    """The conversations of a column; none where most of its values are something else."""
    found = []
    values = _values(rows, column)
    for value in values:
        if isinstance(value, str) and not value.lstrip().startswith("["):
            continue
        try:
            turns = from_json(value, column)
        except Unusable:
            continue
        if isinstance(turns, list) and turns and all(isinstance(turn, dict) and _role(turn) for turn in turns):
            found.append(turns)
    return found if len(found) > _COMMON * len(values) else []


def _role(turn: Mapping[str, Any]) -> str | None:
    said = turn.get("role", turn.get("from"))
    return said if isinstance(said, str) else None


def _chat(rows: Sequence[Mapping[str, Any]], column: str) -> Detected:
    data: dict[str, Any] = {"format": "chat"}
    why = {"format": f"column {column!r} holds messages"}
    if column != "messages":
        data["messages"] = column
    first = Counter(_first_role(turns) for turns in _conversations(rows, column))
    if first["assistant"]:
        data["first_turn"] = "drop"
        why["first_turn"] = f"{first['assistant']:,} of {first.total():,} conversations begin with the assistant"
    if "tools" not in _filled(rows) and "functions" in _filled(rows):
        data["tools"] = "functions"
    return Detected(data=data, why=why)


def _first_role(turns: Sequence[Mapping[str, Any]]) -> str:
    roles = [ROLES.get(_role(turn) or "", "") for turn in turns]
    return next((role for role in roles if role not in INSTRUCTING), "")


def _filled(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {column for row in rows for column, value in row.items() if not is_empty(value)}


def _prompt(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], response: str) -> str | None:
    known = [name for name in PROMPTS if name in columns and name != response and _is_text(rows, name)]
    if known:
        return known[0]
    others = [name for name in columns if name != response and _is_text(rows, name)]
    return others[0] if len(others) == 1 else None


def _instruction(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], prompt: str, response: str) -> Detected:
    filled = _filled(rows) - {prompt, response}
    data: dict[str, Any] = {"prompt": prompt, "response": response}
    why = {"response": "the answers, which are trained"}
    if prompt == "instruction" or filled.intersection(_BESIDE):
        data["template"] = "alpaca"
        also = [name for name in _BESIDE if name in filled]
        why["template"] = f"Alpaca's wording, which reads {', '.join(also)}" if also else "Alpaca's wording"
    elif prompt == "question":
        data["template"], why["template"] = "qa", "`Question: ...`, `Answer:`"
    elif "context" in columns and prompt != "context" and _is_text(rows, "context"):
        data["template"], why["template"] = "{context?}\n\n{prompt}\n", "the context stands before the question"
    unread = [name for name in (*NOT_TEXT, "instruction") if name in filled and name != prompt]
    if unread:
        data["ignore"], why["ignore"] = unread, "columns that are not text, or not part of the prompt"
    return Detected(data=data, why=why)


def _label(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str | None:
    """The column with one of a few labels."""
    for column in (name for name in LABELS if name in columns):
        values = _values(rows, column)
        kinds = {type(value) for value in values}
        if kinds <= {int} or (kinds == {str} and all(len(value) <= _LONGEST_LABEL for value in values)):
            return column
    return None


def _choices(rows: Sequence[Mapping[str, Any]], label: str, name: str) -> list[str]:
    values = set(_values(rows, label))
    if all(isinstance(value, int) or str(value).isdecimal() for value in values):
        count = 1 + max(int(value) for value in values)
        if count > _MOST_LABELS:
            raise InputError(
                f"{name}: column {label!r} holds numbers up to {count - 1:,}, which are not labels. {_SAID}"
            )
        return [str(number) for number in range(max(2, count))]
    if not 2 <= len(values) <= _MOST_LABELS:
        raise InputError(
            f"{name}: column {label!r} holds {len(values):,} different texts, which are not labels. {_SAID}"
        )
    return sorted(values)


def _labelled(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], label: str, name: str) -> Detected:
    first, second = _pair(rows, columns, label, name)
    choices = _choices(rows, label, name)
    numbers = choices[0] == "0"
    why = {
        "response": "one of a few labels",
        "choices": "what the model writes for label 0, 1, ...: put words here"
        if numbers
        else "the texts of the labels",
    }
    data = {"prompt": first, "response": label, "choices": choices}
    if second:
        data["template"] = f"{{prompt}}\n{{{second}}}\n"
    return Detected(data=data, why=why, labels=True)


def _classification(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str) -> Detected:
    label = _label(rows, columns)
    if label is None and (named := next((column for column in LABELS if column in columns), None)):
        raise InputError(
            f"{name}: column {named!r} holds {described(_values(rows, named)[0])}, and labels are whole numbers from "
            f"0, or texts of up to {_LONGEST_LABEL} characters. Write them so."
        )
    if label is None:
        raise InputError(
            f"{name}: the model is a classifier, and no column of these rows holds one of a few labels; there are "
            f"{quoted(columns)}. Name one called {quoted(LABELS[:2])}, or give a language model."
        )
    first, second = _pair(rows, columns, label, name)
    data: dict[str, Any] = {"prompt": first, "response": label, "choices": _choices(rows, label, name)}
    if second:
        data["prompt_pair"] = second
    return Detected(data=data, why={"response": "one of a few labels"}, labels=True)


def _pair(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], label: str, name: str) -> tuple[str, str | None]:
    """The column with the text of a label, and one with a second text."""
    texts = [column for column in columns if column != label and _is_text(rows, column)]
    known = [column for column in _FIRST_TEXTS if column in texts]
    if not known and len(texts) != 1:
        raise _unknown(rows, columns, texts, name)
    first = known[0] if known else texts[0]
    second = next((column for column in _SECOND_TEXTS if column in texts and column != first), None)
    # `text` and `title` beside each other are no pair.
    return first, second if first not in ("text", "review", "tweet") else None


def _text(column: str) -> Detected:
    data = {"format": "text"} if column == "text" else {"format": "text", "text": column}
    return Detected(data=data, why={"format": "every token of the texts is trained"})


def _refuse_pairs_of_answers(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str) -> None:
    if {"chosen", "rejected"} <= set(columns):
        prompt = next((column for column in PROMPTS if column in columns), "COLUMN")
        chat = bool(_conversations(rows, "chosen"))
        texts = f"data.prompt={prompt} --set data.response=chosen"
        said = "data.format=chat --set data.messages=chosen" if chat else texts
        raise InputError(
            f"{name} holds pairs of a chosen and a rejected answer, and gora trains on answers, not on preferences. To "
            f"train on the chosen ones, name them: --set {said}."
        )
    if "segments" in columns:
        raise InputError(
            f"{name} holds Axolotl's `input_output` segments. Write each row as a prompt and a response, or as "
            "messages."
        )


def _refuse_parts_of_conversations(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str) -> None:
    for first, second in (("prompt", "completion"), ("prompt", "response")):
        if {first, second} <= set(columns) and all(_conversations(rows, column) for column in (first, second)):
            raise InputError(
                f"{name}: columns {first!r} and {second!r} both hold messages. Join them into one column `messages`, "
                "the question before its answer."
            )


def _refuse_images(columns: Sequence[str], name: str) -> None:
    if (found := [column for column in ("image", "images", "img") if column in columns]) and len(columns) < 4:
        raise InputError(
            f"{name} holds images (column {found[0]!r}), and gora init writes recipes for texts. docs/images.md has "
            "one for images: a vision model, model.head: image-classification and data.format: image."
        )


def _unknown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], texts: Sequence[str], name: str) -> InputError:
    """The answer to rows that fit nothing, or several things."""
    if not columns:
        return InputError(f"{name}: no column has a value in most of the first {len(rows):,} rows.")
    if {"file_name"} <= {key for value in rows[0].values() if isinstance(value, dict) for key in value}:
        return InputError(f"{name} is LLaMA-Factory's dataset_info.json, not rows. Give a file that it names.")
    held = f"The columns are {quoted(columns)}"
    if not texts:
        kinds = ", ".join(f"{column!r} ({described(_values(rows, column)[0])})" for column in columns)
        return InputError(
            f"{name}: no column holds text or messages; there are {kinds}. Write the prompt and the answer as texts in "
            "columns of their own, or a conversation as a list of messages: docs/data.md has an example of each."
        )
    return InputError(f"{name}: it is not clear which column is the prompt and which the answer. {held}. {_SAID}")
