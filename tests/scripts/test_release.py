"""The wheel and the sdist of a release: built, looked into, installed in a fresh environment and run there."""

import re
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from tests.scripts.conftest import run

pytestmark = pytest.mark.slow


def test_wheel_and_sdist_hold_what_is_needed_and_nothing_else(dist):
    (wheel,) = dist.glob("gora_finetune-*.whl")
    (sdist,) = dist.glob("gora_finetune-*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {re.sub(r"-.*", "", top) for top in tops} == {"gora", "gora_finetune"}
    for needed in (
        "py.typed",
        "assets/recipes/quickstart.yaml",
        "assets/configs/ddp.yaml",
        "assets/models/tiny-6m/config.json",
    ):
        assert f"gora/{needed}" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".pt", ".bin"))]
    with tarfile.open(sdist) as archive:
        inside = archive.getnames()
    assert {"README.md", "pyproject.toml", "gora/__init__.py", "tests/conftest.py"} <= {
        name.partition("/")[2] for name in inside
    }
    assert not [name for name in inside if re.search(r"^[^/]+/(runs|\.venv|\.pytest_cache|site)/", name)]


def test_the_installed_wheel_runs_the_quickstart_in_a_fresh_environment(dist, tmp_path):
    """The libraries are those of this environment; gora is the wheel's."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (wheel,) = dist.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    clean = {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "2"}
    where = run(python, "-c", "import gora; print(gora.__file__)", cwd=tmp_path, env=clean)
    assert where.startswith(str(tmp_path))
    said = run(tmp_path / "venv" / "bin" / "gora", "run", "quickstart", cwd=tmp_path, env=clean)
    base, trained = map(float, re.search(r"([\d.]+) with the base model, ([\d.]+) with the adapter", said).groups())
    assert trained < base - 0.5
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()
    assert run(python, "-m", "pip", "show", "gora-finetune", cwd=tmp_path, env=clean).startswith("Name: gora-finetune")
