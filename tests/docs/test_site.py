"""The documentation says what the code says: settings, messages, commands; and its site builds."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from gora.recipe.schema import Recipe
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import recipe_page
import site_hooks
import vocabulary

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_settings_is_written_from_the_schema():
    text = recipe_page.PAGE.read_text()
    assert recipe_page.page() == text, "run scripts/docs/recipe_page.py"
    for section, info in Recipe.model_fields.items():
        inner = getattr(info.annotation, "model_fields", None) or {}
        names = [f"{section}.{key}" for key in inner] or [section]
        assert all(f"### `{name}`" in text for name in names)
    assert all(f"### `{name}`" in text for name in recipe_page.PULLS)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("train.learning_rate", "number above 0, or `auto`"),
        ("train.beta1", "number at least 0 and below 1"),
        ("data.choices", "list of text of 2 or more"),
        ("seed", "whole number at least 0"),
    ],
)
def test_types_are_said_as_a_reader_of_yaml_would(setting, kind):
    part = recipe_page.PAGE.read_text().partition(f"### `{setting}`\n\n")[2]
    assert part.startswith(kind)


def test_every_error_and_warning_is_on_the_page_of_messages():
    page = site_hooks.messages_page()
    for words in (
        "is neither a file nor a built\\-recipe".replace("\\-", "-in "),
        "There are no micro-batches. Give at least one; 64 are usual.",
        "it is not clear which column is the prompt and which the answer",
    ):
        assert words in page.replace("\\", "")
    source = (
        'raise InputError(f"{x} is wrong, so " + "fix it now")\noutput.warn("look at this please")\nprint("not this")'
    )
    assert list(site_hooks.messages(source)) == ["… is wrong, so fix it now", "look at this please"]


def test_words_of_the_field_are_used_where_users_read(capsys):
    with pytest.raises(SystemExit) as end:
        vocabulary.main()
    assert end.value.code == 0, capsys.readouterr().out
    assert [number for number, _ in vocabulary.faults("fine\nmend it, then begin anew")] == [1, 1]


def test_no_text_tells_to_install_the_project_of_a_stranger():
    files = [*PAGES, ROOT / "pyproject.toml", *(ROOT / "gora").rglob("*.py"), *(ROOT / "scripts").rglob("*.sh")]
    for path in files:
        assert not re.search(r"pip install ['\"]?gora\b(?!-finetune)|gora\[[a-z]", path.read_text()), path


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert not re.search(r'(src|href)="https?://(?!github)', re.sub(r"<a [^>]*>", "", page))
    assert "set_initial_values" in (tmp_path / "site" / "api.html").read_text()
