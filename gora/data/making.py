"""How the rows of a run become examples, whatever is in them; and how those of text do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gora.data.encode import Encoder
from gora.data.encode_text import TextEncoder
from gora.data.examples import Examples
from gora.data.facts import Facts
from gora.data.formats import Format, format_for
from gora.data.kept import Wanted, keep
from gora.data.remarks import answer_for_bad_rows, nothing_left, warn_of_earlier_answers, warn_of_length
from gora.data.row_key import row_key, settings_key
from gora.data.sources import Source, find_source
from gora.data.store import SCHEMA, Store
from gora.recipe.schema import DataSection, Head, SourceSection
from gora.recipe.sources import SettledSource, sources_of
from gora.runtime.row_cache import row_folder
from gora.runtime.workers import cores
from gora.runtime.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLITS = {"train": ("train",), "eval": ("test", "validation")}


class Making:
    """How the rows of a run become examples, whatever is in them.

    Args:
        data: the recipe's section.
        say: takes warnings and the list of the rows that were left out.
        world: the processes of the run.
    """

    schema: ClassVar[Any] = SCHEMA
    """Of the examples in a file."""

    def __init__(self, data: DataSection, say: Callable[[str], None], world: World) -> None:
        self.data, self.say, self.world = data, say, world

    def encoder(self) -> Any:
        """Makes examples of what the format reads; raises InputError."""
        raise NotImplementedError

    def examples(self, store: Store) -> Examples:
        """What a run is given of examples that are kept."""
        raise NotImplementedError

    def find(self, section: SourceSection, splits: tuple[str, ...]) -> Source:
        """Find a source; raises InputError."""
        return find_source(section, splits)

    def format(self, data: DataSection, source: Source) -> Format:
        """How rows of a source are read; raises InputError."""
        raise NotImplementedError

    def settings(self, data: DataSection) -> dict[str, Any]:
        """What a row becomes depends on this besides the row; JSON."""
        raise NotImplementedError

    def look(self, facts: Sequence[Facts], wanted: Sequence[Wanted]) -> None:
        """Say what training rows have that the user should know."""

    def entries(self) -> list[str]:
        """The folders of the training rows and of the evaluation rows, if there are any, source by source; they are
        made if need be.

        Raises:
            InputError: see `prepare`.
        """
        data = self.data
        encoder = self.encoder()
        training = [] if data.streaming else sources_of(data, "train")
        wanted = [self._wanted(source, "train") for source in training]
        wanted += [self._wanted(source, "eval") for source in sources_of(data, "eval")]
        keep(
            wanted,
            encoder,
            encoder,
            workers=cores(self.world.local_size),
            answer=lambda facts: self._answer(wanted, facts, training=len(training)),
            nothing_left=lambda rows, facts: nothing_left(rows.data, rows.fmt, facts),
            schema=self.schema,
        )
        return [str(each.entry) for each in wanted]

    def _wanted(self, settled: SettledSource, name: str) -> Wanted:
        data, section = settled.data, settled.section
        source = self.find(section, _SPLITS[name])
        fmt = self.format(data, source)
        entry = row_folder(data.cache) / row_key(self.settings(data), section, source)
        return Wanted(entry=entry.absolute(), source=source, fmt=fmt, data=data)

    def _answer(self, wanted: Sequence[Wanted], facts: Sequence[Facts], training: int) -> None:
        """Say what was found in the rows, the first of which are those that are trained on.

        Raises:
            InputError: some are bad and must not be.
        """
        notes = dict.fromkeys(note for each in wanted[:training] for note in each.fmt.notes())
        for note in [*notes, *dict.fromkeys(each.notice() for each in facts)]:
            if note is not None:
                self.say(note)
        answer_for_bad_rows(self.data, facts, self.say)
        self.look(facts, wanted[:training])


class TextMaking(Making):
    """Text becomes tokens."""

    def __init__(
        self,
        data: DataSection,
        tokenizer: PreTrainedTokenizerBase,
        head: Head,
        encoder_decoder: bool,
        say: Callable[[str], None],
        world: World,
    ) -> None:
        super().__init__(data, say, world)
        self.tokenizer, self.head, self.encoder_decoder = tokenizer, head, encoder_decoder
        self.shape: dict[str, Any] = (
            {"choices": data.choices or ()} if head == "classification" else {"encoder_decoder": encoder_decoder}
        )

    def entries(self) -> list[str]:
        """See `Making`."""
        warn_of_length(self.data, self.tokenizer, self.say)
        return super().entries()

    def encoder(self) -> Encoder | TextEncoder:
        """Makes examples; raises InputError where the tokenizer cannot end them."""
        data = self.data
        if self.head == "classification":
            return TextEncoder(self.tokenizer, data.max_length, data.overlong)
        return Encoder(self.tokenizer, data.max_length, data.overlong, encoder_decoder=self.encoder_decoder)

    def examples(self, store: Store) -> Examples:
        """See `Making`."""
        return Examples(store, **self.shape)

    def format(self, data: DataSection, source: Source) -> Format:
        """See `Making`."""
        return format_for(data, self.tokenizer, typed=source.typed, head=self.head)

    def settings(self, data: DataSection) -> dict[str, Any]:
        """See `Making`."""
        return settings_key(data, self.tokenizer, head=self.head, encoder_decoder=self.encoder_decoder)

    def look(self, facts: Sequence[Facts], wanted: Sequence[Wanted]) -> None:
        """See `Making`."""
        for each, found in zip(wanted, facts, strict=False):
            if self.encoder_decoder and found.answering:
                warn_of_earlier_answers(each.data, found.answering, self.say)
