"""The page of a run: it holds what the files hold, loads nothing, and a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from gora.errors import InputError
from gora.plan import read_plan
from gora.recipe import load_recipe
from gora.report.drawing import line_chart
from gora.report.page import Figures, run_page
from gora.stages.report import report
from gora.stages.run import run
from gora.training.metrics import read_metrics

SMALL = (
    "data.train.max_rows=16",
    "data.eval.max_rows=4",
    "data.max_length=160",
    "gora.steps=2",
    "train.micro_batch_size=4",
    "train.batch_size=4",
    "train.max_steps=3",
    "train.log_steps=1",
    "evaluation.steps=1",
    "evaluation.samples=1",
)


class Page(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)
        if self.tags and self.tags[-1][0] == "td" and "background" in str(self.tags[-1][1].get("style")):
            self.cells.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    run(load_recipe("quickstart", [*SMALL, f"output={folder}"]).recipe)
    answers = folder / "evaluation" / "gsm8k-trained"
    answers.mkdir(parents=True)
    (answers / "rows.jsonl").write_text(json.dumps({"question": "<script>alert(1)</script>", "output": "&"}) + "\n")
    return folder


def test_the_page_holds_what_the_files_of_the_run_hold(made):
    page = Page((made / "report.html").read_text())
    plan, metrics = read_plan(made / "plan.safetensors"), read_metrics(made / "metrics.jsonl")
    assert sorted(map(int, page.cells)) == sorted(module.rank for module in plan.modules)
    results = json.loads((made / "results.json").read_text())
    for name in ("base", "final"):
        assert f"{results['loss'][name]:.4f}" in page.text
    assert all(setting in page.text and decision.why in page.text for setting, decision in plan.decisions.items())
    lines = [given for tag, given in page.tags if tag == "polyline"]
    assert len(lines[0]["points"].split()) == sum("loss" in line for line in metrics) == 3
    sample = json.loads((made / "samples.jsonl").read_text().splitlines()[0])
    assert sample["expected"][:40] in page.text
    assert all(name in page.text for name in ("adapter/", "metrics.jsonl", f"gora chat {made}", "vllm serve"))


def test_the_page_is_made_again_and_loads_nothing_whatever_rows_say(made, tmp_path, gora_here):
    code, out, err = gora_here("report", made, "--output", tmp_path / "page.html", cwd=tmp_path)
    assert code == 0 and "page.html" in out, err
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert "<script" not in text and "<script>alert(1)</script>" in page.text
    assert not [tag for tag, given in page.tags if given.keys() & {"src", "href", "onload", "onclick"}]
    assert "default-src 'none'" in text and not re.search(r"url\(|@import|https?://", text)


def test_a_folder_without_a_run_is_refused_and_one_that_has_only_begun_is_shown(made, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        report(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        report(tmp_path / "none")
    shutil.copy(made / "recipe.yaml", tmp_path / "recipe.yaml")
    (tmp_path / "failure.json").write_text(
        json.dumps({"code": "input", "message": "a <bad> row", "exit_code": 2, "rows": []})
    )
    page = Page(report(tmp_path).read_text())
    assert "The last command ended early: a <bad> row" in page.text and "--resume" in page.text


def test_a_chart_places_values_by_size_and_leaves_out_what_is_not_finite():
    chart = line_chart({"loss": [(1, 4.0), (2, float("nan")), (3, 2.0)]}, level=("base", 3.0))
    (points,) = re.findall(r'points="([^"]+)"', chart)
    (left, high), (right, low) = ((float(part) for part in point.split(",")) for point in points.split())
    level = float(re.search(r'class="level" d="M[\d.]+,([\d.]+)', chart)[1])
    assert left < right and high < level < low and level - high == pytest.approx(low - level, abs=0.2)
    assert line_chart({"loss": [], "other": [(1, float("inf"))]}) == ""


def test_an_empty_run_makes_a_page():
    assert "<h1>mine</h1>" in run_page(Figures(name="mine"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser: apt-get install chromium")
def test_a_browser_shows_every_part(made, tmp_path):
    picture = tmp_path / "page.png"
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1100,2600",
    ]
    address = report(made).as_uri()
    subprocess.run([*command, f"--screenshot={picture}", address], check=True, capture_output=True, timeout=120)
    shown = subprocess.run([*command, "--dump-dom", address], check=True, capture_output=True, text=True, timeout=120)
    assert [title for title in re.findall(r"<h2>([^<]+)</h2>", shown.stdout)] == [
        "Result", "Decisions", "Ranks", "Loss", "Learning rates", "Throughput and memory", "Answers during training",
        "Evaluation", "Files", "Next",
    ]  # fmt: skip
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (2600, 1100)
    # Every band of the page but the last has ink, and the heat map has its colours.
    assert all(band.min() < 0.5 for band in pixels[:2000].reshape(10, 200, 1100, 3))
    assert ((pixels[..., 0] - pixels[..., 2]).max() > 0.3) and ((pixels[..., 1] - pixels[..., 0]).max() > 0.2)
