"""The environment of processes that the tests start."""

import os
import re

_LAUNCHERS = re.compile("(LOCAL_|CROSS_)?(RANK|SIZE|WORLD_SIZE)|(SLURM|PMI|OMPI|MASTER|OMP|GORA)_.*")


def clean_environment(**more):
    """The environment of a shell that no launcher has started."""
    return {name: value for name, value in os.environ.items() if not _LAUNCHERS.fullmatch(name)} | more
