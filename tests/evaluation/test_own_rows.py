"""Tasks for rows of the user's: `choice` and `exact`, against sums made token by token."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gora.comparison.trials import Trial
from gora.data.prompting import Prompting, read_prompt_format
from gora.errors import InputError
from gora.evaluation.models.generate import Generator
from gora.evaluation.models.load import load_subject
from gora.evaluation.models.locate import find_subject
from gora.evaluation.models.subject import DistributedBackend, LocalSubject
from gora.evaluation.registry import task_named
from gora.evaluation.task import Options
from gora.evaluation.tasks.exact import plain
from gora.recipe import load_recipe
from gora.runs.folder import RunFolder
from gora.runtime.world import World
from gora.stages.evaluate import closing_job, columns_named
from gora.stages.run import run
from tests.conftest import TINY

ROWS = [
    {"question": "Is water wet?", "options": ["yes, it is", "no"], "right": 0},
    {"question": "How many legs has a cat?", "options": ["three", "four", "a hundred of them"], "right": "four"},
    {"question": "What comes after 7?", "options": ["8", "twelve or so"], "right": 0},
]
COLUMNS = {"choices": "options", "answer": "right"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture
def written(tmp_path):
    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def subject_of(model, tokenizer, form=None, batch_size=2):
    backend = Generator(model, tokenizer, batch_size)
    return LocalSubject(prompting=Prompting(form and read_prompt_format(form), tokenizer), backend=backend)


def summed(model, tokenizer, before, after):
    """The log-likelihood of a text behind another, one token at a time, from the model's probabilities."""
    special = not before.startswith(tokenizer.bos_token)
    ids, whole = (tokenizer(text, add_special_tokens=special)["input_ids"] for text in (before, before + after))
    assert whole[: len(ids)] == ids
    total = 0.0
    for place in range(len(ids), len(whole)):
        with torch.no_grad():
            probabilities = model(torch.tensor([whole[:place]])).logits[0, -1].softmax(0)
        total += math.log(float(probabilities[whole[place]]))
    return total


@pytest.mark.parametrize(
    ("form", "before", "space"),
    [
        (None, "{}", " "),
        ({"prompt": "question", "template": "qa"}, "Question: {}\nAnswer:", " "),
        ({"format": "chat", "chat_template": "plain"}, None, ""),
    ],
    ids=["no form", "template", "chat"],
)
def test_likelihoods_of_choices_are_the_sums_of_those_of_their_tokens(
    model, tokenizer, written, tmp_path, form, before, space
):
    subject = subject_of(model, tokenizer, form)
    options = Options(folder=tmp_path, data=written(ROWS), columns=COLUMNS)
    scores = task_named("choice").evaluate(subject, options)
    right = 0
    for row, found in zip(ROWS, scores.rows, strict=True):
        text = before.format(row["question"]) if before else subject.prompting.question(row, "question")
        expected = [summed(model, tokenizer, text, space + choice) for choice in row["options"]]
        assert found["log_likelihoods"] == pytest.approx(expected, abs=2e-3)
        gold = row["right"] if isinstance(row["right"], int) else row["options"].index(row["right"])
        right += expected.index(max(expected)) == gold
        by_byte = [value / len(text) for value, text in zip(expected, row["options"], strict=True)]
        assert found["correct_norm"] == (by_byte.index(max(by_byte)) == gold)
    assert scores.metrics["accuracy"] == right / 3
    assert scores.facts["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)


def test_choices_of_rows_without_any_are_those_that_were_trained(model, tokenizer, written, tmp_path):
    form = {"prompt": "text", "template": "{text}\nMood: ", "response": "label", "choices": ["bad", "good"]}
    rows = [{"text": "What a day", "label": 1}, {"text": "Oh no", "label": 0}]
    options = Options(folder=tmp_path, data=written(rows), columns={"answer": "label"})
    scores = task_named("choice").evaluate(subject_of(model, tokenizer, form), options)
    assert [row["choices"] for row in scores.rows] == [["bad", "good"]] * 2
    expected = [summed(model, tokenizer, "What a day\nMood:", f" {choice}") for choice in ("bad", "good")]
    assert scores.rows[0]["log_likelihoods"] == pytest.approx(expected, abs=2e-3)


def test_a_prompt_that_does_not_fit_loses_its_beginning(model, tokenizer, written, tmp_path):
    longest = model.config.max_position_embeddings
    rows = [{"question": "water " * longest, "choices": [" is wet", " is dry"], "answer": 0}]
    options = Options(folder=tmp_path, data=written(rows))
    assert task_named("choice").evaluate(subject_of(model, tokenizer), options).rows[0]["log_likelihoods"][0] < 0


def test_processes_share_likelihoods_and_answer_in_order(model, tokenizer):
    class Two(World):
        """Two processes in one: what process 1 would send is computed here."""

        size, index = 2, 0

        def __init__(self):
            self.job = None

        def from_main(self, make):
            self.job = make()
            return self.job

        def gather(self, mine):
            backend = Generator(model, tokenizer, 2)
            return [mine, backend.likelihoods(self.job["asked"][1::2], lambda done, tokens: None, base=False)]

    alone = Generator(model, tokenizer, 2)
    pairs = [([5, 6, 7], [8]), ([9, 10], [11, 12]), ([13], [14])]
    shared = DistributedBackend(alone, Two()).likelihoods(pairs, lambda done, tokens: None, base=False)
    assert shared == pytest.approx(alone.likelihoods(pairs, lambda done, tokens: None, base=False), abs=1e-4)


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"question": "a", "choices": ["x", "y"], "answer": 2}, {}, "rows.jsonl:1: column 'answer' is 2"),
        ({"question": "a", "choices": ["x", "y"], "answer": "z"}, {}, "rows.jsonl:1: column 'answer' must be"),
        ({"question": "a", "choices": "x", "answer": 0}, {}, "must be a list of at least two texts"),
        ({"question": "a", "choices": ["x", " "], "answer": 0}, {}, "must hold texts"),
        ({"question": "a", "choices": ["x", "y"]}, {"answer": "label"}, "has no column 'label'"),
        ({"question": "a", "choices": ["x", "y"], "answer": 0}, {"labels": "answer"}, "reads no such column"),
    ],
)
def test_a_row_without_a_right_choice_is_named_before_a_model_is_loaded(written, tmp_path, row, columns, said):
    with pytest.raises(InputError) as caught:
        task_named("choice").check(Options(folder=tmp_path, data=written([row]), columns=columns))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["choice", "exact"])
def test_tasks_of_own_rows_want_rows(tmp_path, name):
    with pytest.raises(InputError, match="name rows with --data"):
        task_named(name).check(Options(folder=tmp_path))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The  Answer.", "the answer", True),
        ("\u201cParis\u201d", "paris", True),
        ("(42)", "42", True),
        ("1.5", "15", False),
        ("-5", "5", False),
        ("\uff21", "a", True),
        ("don't", "dont", False),
        ("yes, it is", "Yes it is!", True),
    ],
)
def test_what_counts_as_the_same_text(one, other, same):
    assert (plain(one) == plain(other)) is same


def test_exact_compares_what_is_written_with_any_of_the_references(model, tokenizer, written, tmp_path):
    subject = subject_of(model, tokenizer, {"prompt": "q", "template": "qa"})
    ids = tokenizer("Question: 1 + 1\nAnswer:")["input_ids"]
    with torch.no_grad():
        made = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, len(ids) :]
    answer = tokenizer.decode(made, skip_special_tokens=True).strip()
    rows = [
        {"q": "1 + 1", "a": answer},
        {"q": "1 + 1", "a": ["nothing of the kind", f"  {answer.upper()}. "]},
        {"q": "1 + 1", "a": "nothing of the kind"},
    ]
    options = Options(folder=tmp_path, data=written(rows), columns={"answer": "a"}, max_new_tokens=4)
    scores = task_named("exact").evaluate(subject, options)
    assert [row["correct"] for row in scores.rows] == [True, True, False]
    assert scores.metrics["exact_match"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="name the one with the reference by --column answer=NAME"):
        task_named("exact").check(Options(folder=tmp_path, data=written([{"q": "a", "reply": "b"}])))


def test_a_run_closes_with_choices_of_two_sets_under_their_labels(written, tmp_path):
    path = written(ROWS)
    task = f"{{name: choice, path: '{path}', columns: {{prompt: question, choices: options, answer: right}}"
    short = ("train.max_steps=2", "gora.steps=2", "data.train.max_rows=32", "data.eval.max_rows=4")
    settings = [*short, f"output={tmp_path / 'run'}"]
    twice = load_recipe("quickstart", [*settings, f"evaluation.tasks=[{task}}}, {task}}}]"]).recipe
    with pytest.raises(InputError, match="two are called choice"):
        closing_job(twice, allow_code_execution=False, trust_remote_code=False)
    both = f"evaluation.tasks=[{task}, label: water}}, {task}, label: legs, max_rows: 2}}]"
    run(load_recipe("quickstart", [*settings, both]).recipe)
    tasks = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]
    assert set(tasks) == {"water", "legs"}
    assert len((tmp_path / "run" / "evaluation" / "legs-trained" / "rows.jsonl").read_text().splitlines()) == 2
    recipe = load_recipe("quickstart", [*settings, both]).recipe
    trial = Trial(label="x", seed=0, overrides=(), recipe=recipe, folder=RunFolder(tmp_path / "run"))
    assert trial.finished
    more = load_recipe("quickstart", [*settings, both.replace("legs", "arms")]).recipe
    assert not replace(trial, recipe=more).finished
    # The adapter's likelihoods, once more from the files that the run left.
    subject = load_subject(find_subject(str(tmp_path / "run")))
    options = Options(folder=tmp_path, data=path, columns={"prompt": "question", **COLUMNS})
    assert task_named("choice").evaluate(subject, options).metrics == tasks["water"]["trained"]["metrics"]


def test_columns_are_named_by_what_they_are_for():
    assert columns_named(["answer=label", "prompt=a=b"]) == {"answer": "label", "prompt": "a=b"}
    with pytest.raises(InputError, match="such as answer=label"):
        columns_named(["label"])
