"""The recipe's `data` section: what is read, how a row becomes text, and what of it is trained."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Head = Literal["language", "classification", "image-classification", "image-zero-shot"]
Turn = Literal["system", "developer", "user", "assistant", "tool"]


class Section(BaseModel):
    """A section takes known keys of the right type only, and does not change once it is read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SourceSection(Section):
    """One set of rows."""

    path: str | Annotated[list[str], Field(min_length=1)]
    """Hub id, folder, or a JSONL, JSON, CSV, TSV or Parquet file, a pattern such as `data/*.jsonl`, or a list of those,
    read in turn; `builtin:gsm8k/train.jsonl` ships with gora. With format image also a folder of images that has a
    folder for each class."""
    subset: str | None = None
    """Configuration of a hub data set or of a folder that names several."""
    split: str | None = None
    """Split of a hub data set or folder; null is `train` for training, `test` or `validation` for evaluation."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Character between two values of a CSV or TSV file; null is a tab for TSV and a comma for CSV."""
    max_rows: Positive | None = None
    """Use the first rows only; null uses all."""


RowFormat = Literal["instruction", "chat", "text", "image"]
Supervise = Literal["response", "code"]
TrainOn = Literal["all", "last"] | Annotated[list[Turn], Field(min_length=1)]
Turns = Literal["together", "separate"]
FirstTurn = Literal["refuse", "drop"]
Packing = Literal["auto", "packed", "padding-free", "none"]
Augment = Literal["none", "flip", "crop"]


class MixedSource(SourceSection):
    """One of several sources; settings that are null are those of `data`."""

    weight: Annotated[float, Field(gt=0)] | None = None
    """Times that each of its rows comes in an epoch: with 2 twice, with 0.5 half of them, and the others in the next
    epoch; null is 1. With `data.streaming` its share of the rows beside the other weights."""
    rows: Positive | None = None
    """How many of its rows come in an epoch, instead of `weight`; the next epoch goes on behind them."""
    format: RowFormat | None = None
    """As `data.format`."""
    prompt: str | None = None
    """As `data.prompt`."""
    prompt_pair: str | None = None
    """As `data.prompt_pair`."""
    response: str | None = None
    """As `data.response`."""
    template: str | None = None
    """As `data.template`."""
    supervise: Supervise | None = None
    """As `data.supervise`."""
    train_on: TrainOn | None = None
    """As `data.train_on`."""
    messages: str | None = None
    """As `data.messages`."""
    tools: str | None = None
    """As `data.tools`."""
    turns: Turns | None = None
    """As `data.turns`."""
    first_turn: FirstTurn | None = None
    """As `data.first_turn`."""
    system: str | None = None
    """As `data.system`."""
    text: str | None = None
    """As `data.text`."""
    image: str | None = None
    """As `data.image`."""
    label: str | None = None
    """As `data.label`."""
    ignore: list[str] | None = None
    """As `data.ignore`."""


SOURCE, SOURCES = "source", "sources"
"""How pydantic's locations name the two ways to write sources."""


def _way(value: Any) -> str:
    return SOURCES if isinstance(value, list) else SOURCE


Sources = Annotated[
    Annotated[SourceSection, Tag(SOURCE)] | Annotated[Annotated[list[MixedSource], Field(min_length=1)], Tag(SOURCES)],
    Discriminator(_way),
]


class DataSection(Section):
    """What to train on, and how a row becomes tokens with a supervised part."""

    train: Sources
    """Rows to train on, of one source or of a list of sources; the gradients of `gora precompute` come from them
    too."""
    eval: Sources | None = None
    """Rows to evaluate on, of one source or of a list; null evaluates on `holdout` rows, or not at all."""
    holdout: Annotated[int, Field(ge=0)] = 0
    """How many training rows, drawn with the seed, are set aside for evaluation."""
    format: RowFormat = "instruction"
    """`instruction`: a prompt column and a response column; `chat`: a column with a list of messages; `text`: a column
    of text of which every token is trained; `image`: a column with an image and one with its class (an image head)."""
    prompt: str = "prompt"
    """Column with the prompt (instruction)."""
    prompt_pair: str | None = None
    """Column with the second text of a pair, which the tokenizer puts behind its separator (head classification)."""
    response: str = "response"
    """Column with the response that is trained; with `choices` it holds the number or the name of one (instruction)."""
    choices: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of a classification's labels, in the order of their numbers (instruction, image); for images null takes
    those of the data: folders, the data set's own names, or the different names in the label column, sorted."""
    template: str = "plain"
    """Text before the response: `plain`, `alpaca`, `qa`, or your own with columns as `{prompt}`, or `{input?}` where a
    row may have none (instruction). A classification head reads the template alone; `plain` is then the prompt as it
    stands."""
    supervise: Supervise = "response"
    """What is trained: whole answers, or only their fenced code blocks and their end; rows without are left out."""
    train_on: TrainOn = "all"
    """Turns that are trained: `all` or `last` of the assistant's, or a list of the roles whose turns are (chat); the
    answers of a row's `history` are trained with `all` (instruction)."""
    messages: str = "messages"
    """Column with a list of messages, as `role` and `content` or as `from` and `value`, or its JSON text (chat)."""
    tools: str = "tools"
    """Column with the tools that a row's assistant may call, which need not be there (chat)."""
    turns: Turns = "together"
    """`together`: a conversation is one row; `separate`: each trained turn is a row of its own with what comes before
    it, for templates that write a turn differently when others follow (chat)."""
    first_turn: FirstTurn = "refuse"
    """What happens to turns of the assistant in front of the first question: the row is bad, or they are left out and
    counted (chat)."""
    chat_template: str | None = None
    """null is the tokenizer's own template; or `plain`, `chatml`, or a Jinja file (chat)."""
    system: str | None = None
    """System message for conversations that have none (chat)."""
    text: str = "text"
    """Column with the text (text)."""
    image: str = "image"
    """Column with the image, or with the path of its file, from the folder of the file that names it (image)."""
    label: str = "label"
    """Column with the number or the name of the image's class (image)."""
    augment: Augment = "none"
    """What training changes of an image, drawn for each row and epoch with the seed: `flip` mirrors half of them;
    `crop` also takes a part, of half the area at least (image)."""
    class_prompts: Annotated[list[str], Field(min_length=1)] = ["a photo of a {class}."]
    """Texts that a zero-shot classifier is made of, with `{class}` for the name of a class; their embeddings are
    averaged (image, head image-zero-shot)."""
    ignore: list[str] = []
    """Columns that are not read on purpose; others that are not read are named, or refused where they say what the
    format needs."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest row in tokens, prompt and response together; for an encoder-decoder each of the two."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What happens to a longer row: cut at the end, or left out; both are counted."""
    bad_rows: Literal["error", "skip"] = "error"
    """What happens to an unusable row: the command ends and names it, or it is left out, named and counted."""
    packing: Packing = "auto"
    """How rows share a micro-batch; a step's rows and their weight stay the same. `none`: padded, as drawn;
    `padding-free`: as many rows, end to end without padding; `packed`: as many end to end as fit the tokens of
    `micro_batch_size` longest rows; `auto`: packed where the model keeps rows apart, which none does with
    `model.attention: eager`, else rows of similar length."""
    streaming: bool = False
    """Read rows while training, for sets that no disk holds: nothing is counted or checked ahead, and
    `train.max_steps` says when training ends."""
    shuffle_buffer: Positive = 10_000
    """Rows of a stream that are read ahead and shuffled together."""
    cache: str | None = None
    """Folder that keeps tokenized rows for later commands and for all processes of a host; null is `gora/rows` in the
    hub's cache folder (`HF_HOME`). `gora cache` lists and deletes what is kept."""
