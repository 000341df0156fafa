"""From the recipe's `data` section to the images of a run, and the names of their classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from gora.data.hub import HubRows
from gora.data.image_examples import ImageExamples, Pixels
from gora.data.image_folder import ImageFolder
from gora.data.labelled_images import ImageEncoder, ImageRows
from gora.data.making import Making
from gora.data.messages import did_you_mean, quoted
from gora.data.parts import TablePart
from gora.data.preparation import PreparedData, prepare_kept
from gora.data.row_key import image_settings_key
from gora.data.sources import Source, SourceFile, find_source
from gora.data.store import IMAGE_SCHEMA, Store
from gora.errors import InputError
from gora.recipe.schema import DataSection, SourceSection
from gora.recipe.sources import sources_of
from gora.runtime.world import World

_TRAIN = ("train",)
_MOST_CLASSES = 100_000


def prepare_images(
    data: DataSection, pixels: Pixels, seed: int, *, say: Callable[[str], None], world: World | None = None
) -> PreparedData:
    """Find and check the images of a run, or map what is kept of an earlier check.

    Args:
        data: the recipe's section, with `choices`.
        pixels: the model's own preparation of a picture.
        seed: draws the holdout, and what augmentation changes.
        say: takes warnings and the list of the rows that were left out.
        world: the processes of the run, which all call this together; None is this one alone.

    Raises:
        InputError: a source cannot be read, an image cannot be decoded or has no class (and `data.bad_rows` is
            `error`), or nothing is left to train on.
    """
    return prepare_kept(_ImageMaking(data, pixels, seed, say, world or World()), seed)


class _ImageMaking(Making):
    """Images stay what they are until a model is given their pixels."""

    schema: ClassVar[Any] = IMAGE_SCHEMA

    def __init__(self, data: DataSection, pixels: Pixels, seed: int, say: Callable[[str], None], world: World) -> None:
        super().__init__(data, say, world)
        self._pixels, self._seed = pixels, seed

    def encoder(self) -> ImageEncoder:
        return ImageEncoder()

    def examples(self, store: Store) -> ImageExamples:
        data = self.data
        return ImageExamples(
            store, choices=data.choices or (), pixels=self._pixels, augment=data.augment, seed=self._seed
        )

    def find(self, section: SourceSection, splits: tuple[str, ...]) -> Source:
        return find_source(section, splits, images=True)

    def format(self, data: DataSection, source: Source) -> ImageRows:
        return ImageRows(data, typed=source.typed, folders=source.folders)

    def settings(self, data: DataSection) -> dict[str, Any]:
        return image_settings_key(data)


def class_names(data: DataSection, *, in_words: bool = False) -> list[str]:
    """The names of the classes by their numbers: those of `data.choices`, else of the training images.

    Folders are sorted by name; a set that names its classes keeps their order; other names are those in the label
    column, sorted; numbers without names are named by themselves.

    Raises:
        InputError: a source cannot be found, its sources name other classes, or there are fewer than two.
    """
    if data.choices is not None:
        return data.choices
    found: dict[str, list[str]] = {}
    for settled in sources_of(data, "train"):
        source = find_source(settled.section, _TRAIN, images=True)
        found[source.name] = _names_in(source, settled.data.label, in_words)
    (first, names), *others = found.items()
    for other, its in others:
        if its != names:
            raise InputError(
                f"{first} and {other} do not name the same classes ({len(names):,} and {len(its):,}), so that the same "
                "number would stand for different ones. Name all classes with data.choices."
            )
    if len(names) < 2:
        raise InputError(f"{first} has one class, {quoted(names)}: there is nothing to tell apart.")
    return names


def _names_in(source: Source, column: str, in_words: bool) -> list[str]:
    known: dict[tuple[str, ...], None] = {}
    for file in source.files:
        names = file.classes if isinstance(file, ImageFolder) else _declared(file, column) or []
        known[tuple(names)] = None
    if len(known) == 1 and (names := list(next(iter(known)))):
        return names
    return _seen(source, column, in_words)


def _declared(file: Any, column: str) -> list[str] | None:
    """What a data set says of its label column, as the datasets library writes it."""
    if isinstance(file, HubRows):
        return getattr(file.rows.features.get(column), "names", None)
    if isinstance(file, SourceFile) and file.kind == ".parquet":
        return _declared_in_parquet(file.path, column)
    return None


def _declared_in_parquet(path: Path, column: str) -> list[str] | None:
    import datasets
    import pyarrow.parquet

    try:
        feature = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path))[column]
    except (KeyError, TypeError, ValueError, OSError):
        # Whatever is wrong with the file itself is said when it is read.
        return None
    return getattr(feature, "names", None)


def _seen(source: Source, column: str, in_words: bool) -> list[str]:
    """The different values of the label column."""
    values: set[Any] = set()
    columns: set[str] = set()
    for part in source.parts():
        # Images need not be copied to see their labels.
        rows = part.only(column).parsed() if isinstance(part, TablePart) else part.parsed()
        for row in rows.rows:
            columns.update(row)
            if isinstance(value := row.get(column), str | int) and not isinstance(value, bool):
                values.add(value)
        if len(values) > _MOST_CLASSES:
            raise InputError(f"{source.name}: column {column!r} has more than {_MOST_CLASSES:,} different values.")
    if column not in columns:
        near = did_you_mean(column, columns)
        raise InputError(
            f"{source.name} has no column {column!r}, which data.label asks for{near or '.'} The columns are "
            f"{quoted(sorted(columns))}."
        )
    texts = {value for value in values if isinstance(value, str)}
    if texts and len(texts) < len(values):
        raise InputError(f"{source.name}: column {column!r} holds numbers and names. Name all classes in data.choices.")
    if not texts and in_words:
        raise InputError(
            f"{source.name} numbers its classes in {column!r} and does not name them, and a zero-shot classifier is "
            "made of their names. Give them with data.choices, in the order of the numbers."
        )
    if not texts:
        return [str(number) for number in range(max(values, default=-1) + 1)]
    return sorted(texts, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
