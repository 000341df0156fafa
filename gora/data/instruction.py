"""The instruction format: a prompt, put into a template, and a response that is trained.

A separator at the end of a template is trained with the response: most tokenizers join a space with the word after it,
so a prompt that ends in one would make the model continue from a token that it has hardly ever seen there.
"""

from typing import Any

from gora.data.choices import choice_of
from gora.data.columns import RowTemplate, is_empty
from gora.data.messages import described
from gora.data.reading import Reading
from gora.data.rows import Unusable
from gora.data.segments import Segment, code_only, column_of, from_json, joined
from gora.recipe.schema import DataSection

TEMPLATES = {
    "plain": "{prompt}\n",
    # The two wordings of Stanford Alpaca, this one for tasks without input. The space after the last colon is how
    # MetaMath's and LoRA-GA's scripts go on from it; training without it would leave those prompts one token off.
    "alpaca": "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response: ",
    "qa": "Question: {prompt}\nAnswer: ",
}
INPUT, SYSTEM, HISTORY = "input", "system", "history"
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response: "
)
_PUT_IT_IN = "put {{{0}?}} into a `data.template` of your own{1}, or name it in `data.ignore`"
BETWEEN_TURNS = "\n\n"
"""What stands between the end of an answer and the prompt of the next turn."""


class Instruction:
    """Rows with a prompt column and a response column.

    Args:
        data: the recipe's section.
        typed: whether values have types; without them (CSV) a choice is a number in digits.
        eos: the end-of-sequence token, which ends the answers of a history.

    Attributes:
        separator: what a response begins with, such as a space.

    Raises:
        InputError: the template is malformed.
    """

    def __init__(self, data: DataSection, *, typed: bool = True, eos: str = "") -> None:
        self._data = data
        self._typed = typed
        self._eos = eos
        template, self.separator = _without_separator(TEMPLATES.get(data.template, data.template))
        self._template = RowTemplate(template, data.prompt, TEMPLATES)
        self._with_input = None
        if data.template == "alpaca" and INPUT not in (data.prompt, data.response):
            self._with_input = RowTemplate(_without_separator(ALPACA_WITH_INPUT)[0], data.prompt, TEMPLATES)

    @property
    def title(self) -> str:
        """`format instruction, template alpaca`."""
        name = self._data.template if self._data.template in TEMPLATES else repr(self._data.template)
        return f"format instruction, template {name}"

    @property
    def columns(self) -> dict[str, str]:
        """The prompt column, if the template has it, the template's other columns, and the response column."""
        return {**self._template.columns, self._data.response: "data.response"}

    @property
    def optional(self) -> set[str]:
        """The template's optional columns; the system text that templates of gora write in front; earlier turns."""
        of_ours = {SYSTEM} if self._data.template in TEMPLATES else set()
        with_input = {INPUT} if self._with_input else set()
        return self._template.optional | of_ours | with_input | {HISTORY}

    @property
    def refused(self) -> dict[str, str]:
        """Columns that say something a prompt needs, and what to do where nothing reads them."""
        alpaca = ", take `data.template: alpaca`"
        return {
            INPUT: _PUT_IT_IN.format(INPUT, alpaca),
            SYSTEM: _PUT_IT_IN.format(SYSTEM, ""),
            "instruction": _PUT_IT_IN.format("instruction", ", set `data.prompt: instruction`"),
        }

    @property
    def asked(self) -> set[str]:
        """The columns that the template must have."""
        return set(self._template.columns)

    def read(self, row: dict[str, Any]) -> Reading:
        """The segments of one row, neighbours of one kind joined; raises Unusable."""
        nulls = [f"null in column {column!r}, which is read as an empty text" for column in self._template.nulls(row)]
        return Reading([joined(self.segments(row))], nulls)

    def segments(self, row: dict[str, Any]) -> list[Segment]:
        """The prompt, unsupervised, and the response, behind the turns of the row's history; raises Unusable."""
        response = self._response(row)
        answer = self._answer(response)
        turns = self._history(row)
        if not turns:
            return [Segment(self.prompt(row), False), answer]
        segments = [Segment(self._system(row), False)]
        for prompt, earlier in turns:
            asked = self._template.text({**row, INPUT: None, self._data.prompt: prompt})
            trained = self._data.train_on == "all"
            segments += [
                Segment(asked, False),
                self._answer(earlier, self._eos) if trained else Segment(self.separator + earlier + self._eos, False),
                Segment(BETWEEN_TURNS, False),
            ]
        return [*segments, Segment(self._asked(row), False), answer]

    def prompt(self, row: dict[str, Any]) -> str:
        """What stands before the response where there is no history; raises Unusable."""
        return self._system(row) + self._asked(row)

    def notes(self) -> list[str]:
        """Nothing about this format depends on the tokenizer."""
        return []

    def _asked(self, row: dict[str, Any]) -> str:
        if self._with_input and not is_empty(row.get(INPUT)):
            return self._with_input.text(row)
        return self._template.text(row)

    def _system(self, row: dict[str, Any]) -> str:
        read = self.columns | dict.fromkeys(self._template.optional, "")
        if self._data.template not in TEMPLATES or SYSTEM in read or is_empty(row.get(SYSTEM)):
            return ""
        if not isinstance(row[SYSTEM], str):
            raise Unusable(f"column {SYSTEM!r} must be text, not {described(row[SYSTEM])}")
        return str(row[SYSTEM]) + BETWEEN_TURNS

    def _history(self, row: dict[str, Any]) -> list[tuple[str, str]]:
        """Earlier turns as pairs of a prompt and its response."""
        if HISTORY in self.columns or HISTORY in self._template.optional or is_empty(row.get(HISTORY)):
            return []
        turns = from_json(row[HISTORY], f"column {HISTORY!r}")
        if not isinstance(turns, list):
            raise Unusable(f"column {HISTORY!r} must be a list of pairs of texts, not {described(turns)}")
        for number, turn in enumerate(turns, start=1):
            is_pair = isinstance(turn, list | tuple) and len(turn) == 2
            if not is_pair or not all(isinstance(text, str) and text.strip() for text in turn):
                raise Unusable(f"turn {number} of column {HISTORY!r} must be a prompt and its response, two texts")
        return [(prompt, response) for prompt, response in turns]

    def _answer(self, response: str, end: str = "") -> Segment:
        answer = Segment(self.separator + response + end, True)
        return code_only(answer, response) if self._data.supervise == "code" else answer

    def _response(self, row: dict[str, Any]) -> str:
        column, choices = self._data.response, self._data.choices
        if choices is not None:
            return choices[choice_of(row, column, choices, typed=self._typed)]
        value = column_of(row, column)
        if not isinstance(value, str):
            raise Unusable(f"column {column!r} must be text, not {described(value)}")
        if not value.strip():
            raise Unusable(
                f"column {column!r} is {'only white space' if value else 'empty'}: there is nothing to train on"
            )
        return value


def _without_separator(template: str) -> tuple[str, str]:
    kept = template.rstrip(" ")
    return kept, template[len(kept) :]
