"""Several commands of gora in one process, which has imported everything once: a JSON list of their arguments becomes
one of exit code and both streams.

    python -m tests.helpers.several '[["chat", "runs/a"], ...]'
"""

import contextlib
import io
import json
import sys

from gora.cli import run_command_line


def one(arguments):
    sys.argv, out, err = ["gora", *arguments], io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command_line()
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    answers = [one(arguments) for arguments in json.loads(sys.argv[1])]
    print(json.dumps(answers))
