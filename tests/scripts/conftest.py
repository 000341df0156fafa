"""The wheel and the sdist, which several slow tests look at."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(*command, cwd, **more):
    """A command that has to work; what it prints."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """A folder with the wheel and the sdist; the tools that build are fetched into an environment of their own."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "venv", folder / "tools", cwd=folder)
    tools = folder / "tools" / "bin" / "python"
    run(tools, "-m", "pip", "install", "--quiet", "build", "twine", cwd=folder)
    run(tools, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
    run(tools, "-m", "twine", "check", "--strict", *(folder / "dist").iterdir(), cwd=folder)
    return folder / "dist"
