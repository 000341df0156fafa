"""All that a command imports, for the server of `forks.py`."""

from importlib import import_module

from gora.runtime.quiet import quiet_loggers

# As the command line does before it imports anything.
quiet_loggers()
import_module("gora.cli")
for stage in ("check", "compare", "evaluate", "export", "merge", "run"):
    import_module(f"gora.stages.{stage}")
