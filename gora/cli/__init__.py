"""The `gora` command: parse, call a stage, print. torch is imported by the stages, not here."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import typer

from gora.cli.cache import cache_command
from gora.cli.chat import chat_command, generate_command
from gora.cli.check import check_command
from gora.cli.compare import compare_command
from gora.cli.evaluate import evaluate_command
from gora.cli.export import export_command
from gora.cli.help import LOOK, TRAIN, USE, PlainCommand, PlainGroup
from gora.cli.init import init_command
from gora.cli.inspect_ranks import inspect_ranks_command
from gora.cli.merge import merge_command
from gora.cli.precompute import precompute_command
from gora.cli.push import push_command
from gora.cli.recipes import recipes_app
from gora.cli.report import report_command
from gora.cli.run import run_command
from gora.cli.train import train_command
from gora.errors import GoraError

_LESS_MEMORY = (
    "Lower train.micro_batch_size or data.max_length, or set train.activation_checkpointing: true; `gora check` says "
    "what a recipe takes."
)
_LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")

app = typer.Typer(
    name="gora",
    help="Fine-tune Hugging Face models with GoRA: ranks and starting values from the gradients of your own data.",
    epilog="First use: gora run quickstart",
    no_args_is_help=True,
    cls=PlainGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("init", cls=PlainCommand, rich_help_panel=TRAIN)(init_command)
app.command("run", cls=PlainCommand, rich_help_panel=TRAIN)(run_command)
app.command("check", cls=PlainCommand, rich_help_panel=TRAIN)(check_command)
app.command("precompute", cls=PlainCommand, rich_help_panel=TRAIN)(precompute_command)
app.command("train", cls=PlainCommand, rich_help_panel=TRAIN)(train_command)
app.command("eval", cls=PlainCommand, rich_help_panel=USE)(evaluate_command)
app.command("compare", cls=PlainCommand, rich_help_panel=TRAIN)(compare_command)
app.command("merge", cls=PlainCommand, rich_help_panel=USE)(merge_command)
app.command("export", cls=PlainCommand, rich_help_panel=USE)(export_command)
app.command("chat", cls=PlainCommand, rich_help_panel=USE)(chat_command)
app.command("generate", cls=PlainCommand, rich_help_panel=USE)(generate_command)
app.command("push", cls=PlainCommand, rich_help_panel=USE)(push_command)
app.command("inspect-ranks", cls=PlainCommand, rich_help_panel=LOOK)(inspect_ranks_command)
app.command("report", cls=PlainCommand, rich_help_panel=LOOK)(report_command)
app.command("cache", cls=PlainCommand, rich_help_panel=LOOK)(cache_command)
app.add_typer(recipes_app, name="recipes", rich_help_panel=LOOK)


def _version(wanted: bool) -> None:
    if wanted:
        from gora import __version__

        typer.echo(f"gora {__version__}")
        raise typer.Exit


@app.callback()
def _gora(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> NoReturn:
    """Run the command and end the process: 0 done, 1 the work failed, 2 wrong input, 130 and 143 interrupted."""
    from gora.runtime.shutdown import leave

    try:
        run_command_line()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    except Exception:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        leave(1)
    leave(0)


def run_command_line() -> None:
    """The command of `sys.argv`, which ends in SystemExit with the exit code of `main`, or in an unforeseen error."""
    from gora.disk import advice_for
    from gora.runtime.interrupt import StopSignal, stopping_at_once
    from gora.runtime.out_of_memory import is_out_of_memory
    from gora.runtime.quiet import quiet_loggers
    from gora.runtime.starter import end_with_starter

    quiet_loggers()
    # A tokenizer warns about forked processes otherwise; gora tokenizes before anything forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with stopping_at_once():
            end_with_starter()
            app(standalone_mode=True)
    except GoraError as error:
        _fail(str(error), error.exit_code)
    except StopSignal as stop:
        _fail(
            f"Stopped by signal {stop.number}. What was being written has been removed; finished files are whole. "
            "Give the command again, `gora run` and `gora train` with --resume to continue from them.",
            128 + stop.number,
        )
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            _fail(f"Out of memory: {first_line}\n{_LESS_MEMORY}", 1)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            # A name that no file can have is one that the user gave.
            code = 2 if error.errno == errno.ENAMETOOLONG else 1
            _fail(advice_for(error) or f"{where}{error.strerror or error}", code)
        if any(sign in str(error) for sign in _LOST_CONNECTION):
            _fail("Another process of this run has ended, and this one cannot go on without it.", 1)
        if type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error"):
            _fail(f"The GPU has failed: {str(error).splitlines()[0]}. CUDA_LAUNCH_BLOCKING=1 shows where.", 1)
        _crash(error)
    except Exception as error:
        _crash(error)


def _crash(error: Exception) -> NoReturn:
    """End because of what nobody foresaw: in one message, where a log has the traceback."""
    from gora.disk import advice_for
    from gora.runtime.failure import first_to_fail, kept_traceback

    # Libraries have errors of their own for a disk that is full.
    if told := advice_for(error):
        _fail(told, 1)
    if not first_to_fail():
        sys.exit(1)
    log = kept_traceback(error)
    if log is None:
        raise error
    advice = "finished files are whole, and --resume continues from them"
    _fail(f"{type(error).__name__}: {error}\nThis was not foreseen: {log} ends with the traceback; {advice}.", 1)


def _fail(message: str, code: int) -> NoReturn:
    from gora.runtime.failure import first_to_fail

    if first_to_fail(code):
        print(f"gora: {message}", file=sys.stderr)
    sys.exit(code)
