"""Data: from files and hub data sets to batches of token ids with a supervised part.

The way of a row: a source is read (`sources`), a row becomes segments of text that are trained on or not (`formats`),
segments become ids and labels (`encode`), which are kept in files that are mapped (`kept`), and a set of them is what a
run trains on (`preparation`).
"""

from gora.data.chat import Chat
from gora.data.classification import LabelledText
from gora.data.collate import Collator, LabelCollator, padding_id
from gora.data.encode import IGNORED, Encoded, Encoder
from gora.data.encode_text import TextEncoder
from gora.data.examples import Counts, DataCounts, Examples
from gora.data.formats import Format, format_for
from gora.data.image_batches import ImageCollator
from gora.data.instruction import Instruction
from gora.data.preparation import PreparedData, prepare
from gora.data.reading import Reading
from gora.data.row_order import draw_rows, epoch_order
from gora.data.rows import BadRow, Rows
from gora.data.segments import Segment
from gora.data.show import sample_text
from gora.data.sources import read_rows
from gora.data.templates import named_template

__all__ = [
    "IGNORED",
    "BadRow",
    "Chat",
    "Collator",
    "Counts",
    "DataCounts",
    "Encoded",
    "Encoder",
    "Examples",
    "Format",
    "ImageCollator",
    "Instruction",
    "LabelCollator",
    "LabelledText",
    "PreparedData",
    "Reading",
    "Rows",
    "Segment",
    "TextEncoder",
    "draw_rows",
    "epoch_order",
    "format_for",
    "named_template",
    "padding_id",
    "prepare",
    "read_rows",
    "sample_text",
]
