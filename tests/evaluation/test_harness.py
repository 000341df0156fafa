"""`gora eval --harness`: lm-eval sees the same model and prompts, and where it judges otherwise is known."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from gora.adapters.save import ADAPTER_NOTE
from gora.data import prepare
from gora.data.prompting import Prompting, describe_prompt_format
from gora.errors import InputError
from gora.evaluation.models.generate import Generator
from gora.evaluation.models.subject import LocalSubject
from gora.evaluation.registry import task_named
from gora.evaluation.task import Options
from gora.evaluation.tasks import harness, lm_harness
from gora.recipe.schema import DataSection, SourceSection
from gora.stages.evaluate import Job, evaluate, task_jobs
from tests.conftest import TINY

QUESTIONS = "builtin:gsm8k/test.jsonl"
FORMS = {
    "qa": DataSection(train=SourceSection(path="-"), prompt="question", response="answer", template="qa"),
    "chat": DataSection(train=SourceSection(path="-"), format="chat", chat_template="chatml", system="Be brief."),
}
FILTERS = ("strict-match", "flexible-extract")
installed = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'gora-finetune[lm-eval]'"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def adapted():
    """The built-in model with an adapter that changes what it says."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "up_proj"]
    return get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, target_modules=targets)).eval()


def asked_twice(name, subject, options):
    task = task_named(name)
    return task.evaluate(subject, options), harness.second_opinion(task).evaluate(subject, options)


@installed
@pytest.mark.parametrize(("form", "base", "count"), [("qa", True, 24), ("qa", False, 12), ("chat", False, 6)])
def test_the_same_rows_get_the_same_answers_and_judgements(form, base, count, adapted, tokenizer):
    subject = LocalSubject(
        prompting=Prompting(FORMS[form], tokenizer), backend=Generator(adapted, tokenizer, 5), base=base
    )
    ours, theirs = asked_twice("gsm8k", subject, Options(folder=Path(), data=QUESTIONS, limit=count, max_new_tokens=32))
    assert theirs.facts["prompts_in_other_tokens"] == 0 == theirs.facts["cut_short"]
    for mine, other in zip(ours.rows, theirs.rows, strict=True):
        assert other["question"] == mine["question"]
        assert other["prompt"] == subject.prompting.conversation([{"role": "user", "content": mine["prompt"]}])
        assert other["output"] == mine["output"]
        assert other["flexible-extract"]["exact_match"] == mine["correct"]
    assert theirs.metrics["exact_match,flexible-extract"] == ours.metrics["exact_match"]
    # The untouched model has some right by chance, so that agreement is more than that of failures.
    assert not base or ours.metrics["exact_match"] > 0


@installed
def test_an_adapter_answers_otherwise_than_its_base(adapted, tokenizer):
    prompting, generator = Prompting(FORMS["qa"], tokenizer), Generator(adapted, tokenizer, 4)
    opinion, options = harness.second_opinion(task_named("gsm8k")), Options(folder=Path(), data=QUESTIONS, limit=2)
    answers = [
        [
            row["output"]
            for row in opinion.evaluate(LocalSubject(prompting=prompting, backend=generator, base=base), options).rows
        ]
        for base in (False, True)
    ]
    assert answers[0] != answers[1]


@pytest.fixture
def answering(monkeypatch):
    """Gives both sides set answers, so that only what is made of them may differ."""

    def with_answers(answers):
        from lm_eval.models.huggingface import HFLM

        monkeypatch.setattr(HFLM, "generate_until", lambda self, requests: list(answers))
        monkeypatch.setattr(Generator, "generate", lambda *_, **__: [[answer] for answer in answers])

    return with_answers


@installed
def test_gold_answers_are_right_for_both(adapted, tokenizer, answering):
    rows = (TINY.parent.parent / "data" / "gsm8k" / "test.jsonl").read_text().splitlines()
    answering([json.loads(row)["answer"] for row in rows])
    subject = LocalSubject(prompting=Prompting(FORMS["qa"], tokenizer), backend=Generator(adapted, tokenizer, 5))
    ours, theirs = asked_twice("gsm8k", subject, Options(folder=Path(), data=QUESTIONS))
    assert len(ours.rows) == len(theirs.rows) == len(rows) == 200
    assert ours.metrics["exact_match"] == 1
    assert set(theirs.metrics.values()) == {1.0}


JUDGED = [
    # an answer to a question whose number is 18; right for us, by strict-match, by flexible-extract
    ("9 * 2 = 18\n#### 18", True, True, True),
    ("#### 17", False, False, False),
    ("I do not know.", False, False, False),
    # Only strict-match insists on the mark, and on a digit right behind it.
    ("She makes $18.", True, False, True),
    ("####18", True, False, True),
    ("#### $18", True, False, True),
    ("#### 9 * 2 = 18", True, False, True),
    # The harness compares text.
    ("#### 18.00", True, False, False),
    # flexible-extract takes the last number, whatever it is.
    ("#### 18\n\nQuestion: What is 2 + 3?\nAnswer: #### 5", True, True, False),
    ("#### 18 dollars for 9 eggs", True, True, False),
    ("The answer is 18, found in 2 steps.", True, False, False),
    ("It is \\boxed{18}, as of line 2.", True, False, False),
    ("It is 36/2", True, False, False),
    ("That is 20-18", True, False, False),
    # ... which helps a text that corrects itself.
    ("#### 17\n#### 18", False, False, True),
]


@installed
def test_where_judgements_differ_is_known(adapted, tokenizer, answering, tmp_path):
    question = {"question": "What is 9 * 2?", "answer": "#### 18"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(question) + "\n" for _ in JUDGED))
    answering([answer for answer, *_ in JUDGED])
    subject = LocalSubject(prompting=Prompting(FORMS["qa"], tokenizer), backend=Generator(adapted, tokenizer, 5))
    ours, theirs = asked_twice("gsm8k", subject, Options(folder=tmp_path, data=str(tmp_path / "rows.jsonl")))
    found = [
        (mine["output"], mine["correct"], *(other[name]["exact_match"] == 1 for name in FILTERS))
        for mine, other in zip(ours.rows, theirs.rows, strict=True)
    ]
    assert found == JUDGED


@installed
def test_an_encoder_decoder_answers_the_same(tokenizer):
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, n_positions=16)
    config.pad_token_id = config.decoder_start_token_id = tokenizer.pad_token_id or 0
    model = T5ForConditionalGeneration(config).eval()
    prompting = Prompting(FORMS["qa"], tokenizer, encoder_decoder=True)
    subject = LocalSubject(prompting=prompting, backend=Generator(model, tokenizer, 3))
    ours, theirs = asked_twice("gsm8k", subject, Options(folder=Path(), data=QUESTIONS, limit=5, max_new_tokens=7))
    assert theirs.facts["prompts_in_other_tokens"] == 0
    assert [row["output"] for row in theirs.rows] == [row["output"] for row in ours.rows]
    assert len({row["output"] for row in ours.rows}) > 1


@installed
@pytest.mark.parametrize("room", [20, -3])
def test_prompts_are_never_cut(room, adapted, tokenizer, tmp_path):
    prompting = Prompting(FORMS["qa"], tokenizer)
    question = {"question": "one " * (adapted.config.max_position_embeddings - room), "answer": "#### 1"}
    while room > 0 and len(prompting.ids([asked(prompting, question)])[0]) > adapted.config.max_position_embeddings - 5:
        question["question"] = question["question"][4:]
    (tmp_path / "rows.jsonl").write_text(json.dumps(question) + "\n")
    subject, options = (
        LocalSubject(prompting=prompting, backend=Generator(adapted, tokenizer, 1)),
        Options(folder=tmp_path, data=str(tmp_path / "rows.jsonl")),
    )
    if room < 0:
        with pytest.raises(InputError, match="fills the model's context"):
            harness.second_opinion(task_named("gsm8k")).evaluate(subject, options)
        return
    ours, theirs = asked_twice("gsm8k", subject, options)
    assert theirs.facts["cut_short"] == 1
    assert theirs.rows[0]["output"] == ours.rows[0]["output"]


def asked(prompting, row):
    return prompting.conversation([{"role": "user", "content": row["question"]}])


@installed
def test_labels_are_weighed_as_they_were_trained(adapted, tokenizer, tmp_path):
    rows = [{"sentence": text, "label": label} for text, label in (("a fine film", 1), ("dull", 0), ("so so", 1))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(
        train=SourceSection(path=str(path)),
        template="sst2 sentence: {sentence}\nlabel: ",
        response="label",
        choices=["bad", "very good"],
    )
    subject = LocalSubject(prompting=Prompting(data, tokenizer), backend=Generator(adapted, tokenizer, 2))
    scores = harness.second_opinion(task_named("glue/sst2")).evaluate(subject, Options(folder=tmp_path, data=str(path)))

    right = []
    for row, scored in zip(rows, scores.rows, strict=True):
        weights = [log_probability(adapted, tokenizer, data, {**row, "label": label}) for label in (0, 1)]
        assert [float(weight) for weight, _ in scored["output"]] == pytest.approx(weights, abs=1e-3)
        right.append(weights.index(max(weights)) == row["label"])
    assert scores.metrics == {"acc": pytest.approx(sum(right) / 3)}


def log_probability(model, tokenizer, data, row):
    """Of a row's label, token for token as it stands in training, without the end of the sequence."""
    Path(data.train.path).with_name("one.jsonl").write_text(json.dumps(row) + "\n")
    source = SourceSection(path=str(Path(data.train.path).with_name("one.jsonl")))
    example = prepare(data.model_copy(update={"train": source}), tokenizer, 0, encoder_decoder=False, say=print).train[
        0
    ]
    ids = torch.tensor([list(example["input_ids"])])
    with torch.no_grad():
        logs = model(ids).logits[0].log_softmax(-1)
    places = [place for place, label in enumerate(example["labels"]) if label != -100][:-1]
    return float(sum(logs[place - 1, ids[0, place]] for place in places))


@pytest.fixture(scope="module")
def adapter(adapted, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapted.peft_config["default"].base_model_name_or_path = "builtin:tiny-6m"
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    note = {"base_dtype": "float32", "base_fingerprint": "", "prompt_format": describe_prompt_format(FORMS["qa"])}
    (folder / ADAPTER_NOTE).write_text(json.dumps(note))
    return folder


@installed
def test_figures_stand_beside_ours(adapter, tmp_path):
    jobs = task_jobs(["gsm8k"], Options(folder=Path(), data=QUESTIONS, limit=2, max_new_tokens=6), harness=True)
    evaluate(str(adapter), Job(tasks=jobs, which="both"), destination=tmp_path)
    tasks = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert {name: set(sides) for name, sides in tasks.items()} == {
        "gsm8k": {"base", "trained"},
        "gsm8k/harness": {"base", "trained"},
    }
    for side in ("base", "trained"):
        theirs, ours = tasks["gsm8k/harness"][side], tasks["gsm8k"][side]
        assert theirs["lm_eval"]
        assert theirs["data_sha256"] == ours["data_sha256"]
        rows = [
            [json.loads(row)["output"] for row in Path(one["rows"]).read_text().splitlines()] for one in (ours, theirs)
        ]
        assert rows[0] == rows[1]
        assert len(rows[0]) == 2


@installed
def test_a_file_of_a_task_of_its_own_is_run_as_it_comes(adapter, tmp_path, monkeypatch):
    import lm_eval.tasks

    monkeypatch.setattr(lm_harness, "manager", lambda: lm_eval.tasks.TaskManager(include_defaults=False))
    rows = [{"text": f"{number} and {number} is", "sum": str(2 * number)} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(
        "task: my_sums\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "doc_to_text: '{{text}}'\ndoc_to_choice: ['0', '2', '4', '6', '8']\n"
        "doc_to_target: '{{sum}}'\nmetric_list: [{metric: acc}]\n"
    )
    jobs = task_jobs([f"harness:{tmp_path / 'sums.yaml'}"], Options(folder=Path(), limit=3), harness=True)
    found = evaluate(str(adapter), Job(tasks=jobs), destination=tmp_path / "out")
    assert set(found["harness:sums"]["trained"].metrics) == {"acc"}
    assert [row["prompt"] for row in found["harness:sums"]["trained"].rows] == [row["text"] for row in rows[:3]]


@installed
def test_programs_are_not_run_without_a_sandbox(adapter, tmp_path, monkeypatch):
    import lm_eval.tasks

    monkeypatch.setattr(lm_harness, "manager", lambda: lm_eval.tasks.TaskManager(include_defaults=False))
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "unsafe.yaml").write_text(
        "task: unsafe\ndataset_path: json\ntest_split: test\nunsafe_code: true\ndoc_to_text: text\n"
        f"doc_to_target: text\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    jobs = task_jobs([f"harness:{tmp_path / 'unsafe.yaml'}"], Options(folder=Path(), allow_code_execution=True))
    with pytest.raises(InputError, match="without a sandbox"):
        evaluate(str(adapter), Job(tasks=jobs), destination=tmp_path / "out")


@installed
def test_what_is_no_task_of_its_own_is_named():
    with pytest.raises(InputError, match="did you mean 'hellaswag'"):
        harness.Foreign("helaswag").check(Options(folder=Path()))


def test_what_a_task_of_its_own_settles_by_itself_is_refused(monkeypatch):
    monkeypatch.setattr(lm_harness, "find_spec", lambda name: name)
    for options, said in (
        (Options(folder=Path(), data=QUESTIONS), "leave --data out"),
        (Options(folder=Path(), temperature=0.0, max_new_tokens=5), "leave --max-new-tokens, --temperature out"),
    ):
        with pytest.raises(InputError, match=said):
            harness.Foreign("hellaswag").check(options)


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(lm_harness, "find_spec", lambda name: None)
    foreign, _, opinion = task_jobs(["harness:hellaswag", "gsm8k"], Options(folder=Path()), harness=True)
    for task, options in (foreign, opinion):
        with pytest.raises(InputError, match=r"gora-finetune\[lm-eval\]"):
            task.check(options)


def test_the_harness_has_the_model_to_itself():
    tasks = [harness.second_opinion(task_named("gsm8k"))]
    harness.check_place(tasks, backend="hf", processes=1)
    harness.check_place([task_named("gsm8k")], backend="vllm", processes=8)
    for place, said in (
        ({"backend": "vllm", "processes": 1}, "--backend hf"),
        ({"backend": "hf", "processes": 2}, "--gpus 1"),
    ):
        with pytest.raises(InputError, match=said):
            harness.check_place(tasks, **place)


def test_a_task_without_counterpart_is_named():
    with pytest.raises(InputError, match="not on mtbench"):
        task_jobs(["mtbench"], Options(folder=Path()), harness=True)


def test_a_temperature_is_not_for_the_harness(monkeypatch):
    monkeypatch.setattr(lm_harness, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="leave --temperature"):
        harness.second_opinion(task_named("gsm8k")).check(Options(folder=Path(), temperature=0.7))
