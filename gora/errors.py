"""The errors that end a command, each with the exit code that the command answers with."""

from collections.abc import Sequence

DISTRIBUTION = "gora-finetune"
"""What pip installs. The name `gora` belongs to another project there."""


class GoraError(Exception):
    """The work failed for a reason that the message explains: exit code 1.

    Args:
        message: what went wrong, where, and what to do.
        code: the kind of failure, one word for programs: they never read the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str = "failed") -> None:
        self.code = code
        # Half a character, out of a name in the input, could not be written to any log.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())


class InputError(GoraError):
    """The user's input is wrong (recipe, data, plan, arguments): exit code 2.

    Args:
        headline: what was being read, in one line.
        problems: one complete sentence for each thing that is wrong; all of them are shown.
        code: see `GoraError`.
    """

    exit_code = 2

    def __init__(self, headline: str, problems: Sequence[str] = (), *, code: str = "input") -> None:
        self.headline = headline
        self.problems = tuple(problems)
        super().__init__("\n".join([headline, *(f"  - {problem}" for problem in self.problems)]), code=code)


class Interrupted(GoraError):
    """The user or the system asked to stop, and what could be kept has been kept: exit code 128 + signal number.

    Args:
        signal_number: the signal that was received (2 for Ctrl-C, 15 for a termination request).
        kept: what lies on disk now and how to go on, in one sentence.
    """

    def __init__(self, signal_number: int, kept: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"Stopped by signal {signal_number}. {kept}", code="interrupted")


def pip_extra(extra: str) -> str:
    """The command that installs one of gora's extras."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
