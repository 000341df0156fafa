"""Where the value of a setting comes from."""

from typing import NamedTuple

from gora.plan import Source


class Origin(NamedTuple):
    """Who decided a setting, with file and line, or why."""

    source: Source
    detail: str = ""
