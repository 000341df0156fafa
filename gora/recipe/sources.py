"""The sources that a recipe's `data` section names, each with the settings that hold for it."""

from dataclasses import dataclass
from typing import Literal

from gora.recipe.data_schema import DataSection, MixedSource, SourceSection

ITS_OWN = tuple(name for name in MixedSource.model_fields if name in DataSection.model_fields)
"""Settings of `data` that one of several sources may have for itself."""


@dataclass(frozen=True, kw_only=True)
class SettledSource:
    """A source, and how its rows become text.

    Attributes:
        key: where the recipe names it: `data.train`, or `data.train.0` in a list.
        section: what is read.
        data: the recipe's section, with the settings that this source has for itself.
    """

    key: str
    section: SourceSection
    data: DataSection

    def key_of(self, setting: str) -> str:
        """Where a setting that holds for it is written."""
        own = isinstance(self.section, MixedSource) and getattr(self.section, setting, None) is not None
        return f"{self.key}.{setting}" if own else f"data.{setting}"


def sources_of(data: DataSection, name: Literal["train", "eval"]) -> list[SettledSource]:
    """The sources of the training rows or of the evaluation rows, in the order of the recipe."""
    found = getattr(data, name)
    if found is None:
        return []
    if not isinstance(found, list):
        return [SettledSource(key=f"data.{name}", section=found, data=data)]
    return [
        SettledSource(key=f"data.{name}.{index}", section=section, data=_for_itself(data, section))
        for index, section in enumerate(found)
    ]


def asked_as(data: DataSection) -> DataSection:
    """The section by whose format a trained model is asked: that of the first training source."""
    return sources_of(data, "train")[0].data


def _for_itself(data: DataSection, section: MixedSource) -> DataSection:
    own = {name: value for name in ITS_OWN if (value := getattr(section, name)) is not None}
    return data.model_copy(update=own | {"train": SourceSection(**section.model_dump(include=_READ)), "eval": None})


_READ = set(SourceSection.model_fields)
