"""`gora eval`: what is asked is what was trained, answers are those of plain decoding, and results can be repeated."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gora.data import prepare
from gora.data.prompting import Prompting, describe_prompt_format, read_prompt_format
from gora.errors import InputError
from gora.evaluation.models.generate import Generator
from gora.evaluation.models.load import load_subject
from gora.evaluation.models.locate import find_subject
from gora.evaluation.models.subject import LocalSubject
from gora.evaluation.registry import task_named
from gora.evaluation.task import Options, Sampling
from gora.recipe import load_recipe
from gora.recipe.schema import DataSection, SourceSection
from gora.stages.evaluate import Job, evaluate, task_jobs
from gora.stages.merge import merge
from gora.stages.run import run
from tests.conftest import ROOT, TINY
from tests.helpers import forks

QUESTIONS = "builtin:gsm8k/test.jsonl"
SHORT = (
    "train.max_steps=3",
    "gora.steps=3",
    "gora.micro_batch_size=2",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "data.eval.max_rows=4",
    "data.train.max_rows=40",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the quickstart that has learned a little, and closed with a task."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    task = f"evaluation.tasks=[{{name: gsm8k, path: '{QUESTIONS}', max_rows: 3, max_new_tokens: 8}}]"
    run(load_recipe("quickstart", [*SHORT, task, f"output={folder}"]).recipe)
    return folder


def ignore(done, tokens):
    pass


def plainly(model, tokenizer, ids, count):
    """The likeliest token again and again, without cache, padding or the library's loop."""
    sequence = list(ids)
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([sequence])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        sequence.append(token)
    return sequence[len(ids) :]


@pytest.mark.parametrize(
    "form",
    [
        {"prompt": "question", "response": "answer", "template": "qa"},
        {"prompt": "question", "response": "answer", "template": "alpaca"},
        {"format": "chat", "chat_template": "plain", "system": "Be brief."},
        {"format": "chat", "chat_template": "chatml"},
    ],
)
def test_a_prompt_is_what_stood_before_the_response_in_training(form, tokenizer, tmp_path):
    question, answer = "Tom has 3 pens.\nHow many?", "He has 3.\n#### 3"
    row = {"question": question, "answer": answer}
    row["messages"] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = DataSection(train=SourceSection(path=str(tmp_path / "rows.jsonl")), **form)
    example = prepare(data, tokenizer, 0, encoder_decoder=False, say=print).train[0]
    trained = next(place for place, label in enumerate(example["labels"]) if label != -100)

    prompting = Prompting(data, tokenizer)
    assert prompting.converses
    (ids,) = prompting.ids([prompting.conversation([{"role": "user", "content": question}])])
    assert ids == example["input_ids"][:trained]


def test_the_form_survives_its_note(tokenizer):
    data = load_recipe("quickstart", ["data.template='Q {question}: '"]).recipe.data
    again = read_prompt_format(json.loads(json.dumps(describe_prompt_format(data))))
    row = {"question": "one?", "answer": "1"}
    assert Prompting(again, tokenizer).row(row) == Prompting(data, tokenizer).row(row) == "Q one?:"


def test_a_second_question_stands_behind_the_first_and_its_answer(tokenizer):
    data = DataSection(train=SourceSection(path="-"), template="qa")
    turns = [("user", "One?"), ("assistant", "It is 1."), ("user", "Two?")]
    text = Prompting(data, tokenizer).conversation([{"role": role, "content": content} for role, content in turns])
    eos = tokenizer.eos_token
    assert text == f"Question: One?\nAnswer: It is 1.{eos}\n\nQuestion: Two?\nAnswer:"


def test_a_model_without_any_form_only_continues_texts(tokenizer):
    assert tokenizer.chat_template is None
    prompting = Prompting(None, tokenizer)
    assert not prompting.converses
    with pytest.raises(InputError, match="no place for one"):
        prompting.conversation([{"role": "user", "content": "?"}])


def test_a_form_made_of_other_columns_has_no_place_for_a_question(tokenizer):
    data = DataSection(train=SourceSection(path="-"), template="sst2 sentence: {sentence}")
    assert not Prompting(data, tokenizer).converses


def test_answers_of_a_padded_batch_are_those_of_plain_decoding(model, tokenizer):
    texts = ["The", "Question: Tom has 3 pens and buys 4. How many?\nAnswer:", "Once upon a time in a town", "1 2 3 4"]
    prompts = Prompting(None, tokenizer).ids(texts)
    expected = [tokenizer.decode(plainly(model, tokenizer, ids, 12), skip_special_tokens=True) for ids in prompts]
    for size in (1, 3, 4):
        found = Generator(model, tokenizer, size).generate(prompts, Sampling(max_new_tokens=12), ignore, base=False)
        assert [answer for (answer,) in found] == expected


def test_an_answer_ends_before_a_stop_text(model, tokenizer):
    prompts = Prompting(None, tokenizer).ids(["Once upon a time"])
    ((whole,),) = Generator(model, tokenizer, 1).generate(prompts, Sampling(max_new_tokens=30), ignore, base=False)
    word = whole.split()[3]
    ((cut,),) = Generator(model, tokenizer, 1).generate(
        prompts, Sampling(max_new_tokens=30, stop=(word,)), ignore, base=False
    )
    assert cut == whole[: whole.index(word)]


def test_samples_differ_from_each_other_and_come_again_with_their_seed(model, tokenizer):
    prompts = Prompting(None, tokenizer).ids(["Once upon a time", "The"])
    drawn = [
        Generator(model, tokenizer, 4).generate(
            prompts, Sampling(max_new_tokens=10, temperature=1.0, samples=3, seed=seed), ignore, base=False
        )
        for seed in (1, 1, 2)
    ]
    assert [len(each) for each in drawn[0]] == [3, 3]
    assert len(set(drawn[0][0])) > 1
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_prompt_that_fills_the_context_gets_no_answer_and_is_counted(model, tokenizer):
    full = [5] * model.config.max_position_embeddings
    generator = Generator(model, tokenizer, 1)
    ((empty,), (short,)) = generator.generate([full, full[:-3]], Sampling(max_new_tokens=10), ignore, base=False)
    assert empty == ""
    assert short == tokenizer.decode(plainly(model, tokenizer, full[:-3], 3), skip_special_tokens=True)
    assert generator.facts["cut_short"] == 2


def test_an_encoder_decoder_answers_from_its_decoder(t5, tokenizer):
    t5.generation_config.decoder_start_token_id = 0

    class Small:
        """The tokenizer of another vocabulary, of which only padding and decoding are used."""

        pad_token_id, eos_token_id = 0, 1

        def decode(self, ids, **_):
            return " ".join(str(one) for one in ids if one > 1)

    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    expected = []
    for ids in prompts:
        made = [0]
        while len(made) < 7 and made[-1] != 1:
            with torch.no_grad():
                logits = t5(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([made])).logits
            made.append(int(logits[0, -1].argmax()))
        expected.append([" ".join(str(one) for one in made if one > 1)])
    assert Generator(t5, Small(), 2).generate(prompts, Sampling(max_new_tokens=6), ignore, base=False) == expected


def test_memory_that_does_not_suffice_halves_the_batch(model, tokenizer, monkeypatch):
    sizes = []
    generate = Generator._batch

    def scarce(self, prompts, sampling):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return generate(self, prompts, sampling)

    prompts = Prompting(None, tokenizer).ids(["One", "Two", "Three", "Four", "Five"])
    expected = Generator(model, tokenizer, 8).generate(prompts, Sampling(max_new_tokens=4), ignore, base=False)
    monkeypatch.setattr(Generator, "_batch", scarce)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert Generator(model, tokenizer, 8).generate(prompts, Sampling(max_new_tokens=4), ignore, base=False) == expected
    assert sizes == [5, 4, 2, 2, 1]


def test_a_run_closes_with_its_tasks(trained):
    results = json.loads((trained / "results.json").read_text())
    assert set(results["loss"]) == {"base", "initial", "final"}
    figures = results["tasks"]["gsm8k"]["trained"]
    rows = [json.loads(line) for line in Path(figures["rows"]).read_text().splitlines()]
    assert len(rows) == 3
    assert figures["metrics"]["exact_match"] == sum(row["correct"] for row in rows) / 3
    assert {"data", "data_sha256", "limit", "seed", "batch_size", "versions", "model", "prompt_format"} <= set(figures)


def test_the_base_answers_as_the_untouched_model_and_the_adapter_as_the_merged_one(trained, model, tokenizer, tmp_path):
    loaded = load_subject(find_subject(str(trained)))
    backend = loaded.backend
    texts = [f"Question: {number} pens and {number} more?\nAnswer:" for number in (3, 5, 8)]
    base = LocalSubject(prompting=loaded.prompting, backend=backend, base=True).complete(
        texts, Sampling(max_new_tokens=10)
    )
    adapted = LocalSubject(prompting=loaded.prompting, backend=backend).complete(texts, Sampling(max_new_tokens=10))
    merge(trained / "adapter", tmp_path / "merged")
    merged = load_subject(find_subject(str(tmp_path / "merged")))
    ids = loaded.prompting.ids(texts)
    assert base == Generator(model, tokenizer, 4).generate(ids, Sampling(max_new_tokens=10), ignore, base=False)
    assert adapted == merged.backend.generate(ids, Sampling(max_new_tokens=10), ignore, base=False)
    assert base != adapted


def test_adapter_and_merged_model_remember_the_form_that_was_trained(trained, tmp_path):
    merge(trained / "adapter", tmp_path / "merged")
    forms = {
        load_subject(find_subject(str(path))).prompting.conversation([{"role": "user", "content": "One?"}])
        for path in (trained, trained / "adapter", tmp_path / "merged")
    }
    assert forms == {"Question: One?\nAnswer:"}


def test_both_sides_are_recorded_beside_what_was_there(trained):
    before = json.loads((trained / "results.json").read_text())
    options = Options(folder=Path(), data=QUESTIONS, limit=2, max_new_tokens=4)
    found = evaluate(str(trained), Job(tasks=task_jobs(["gsm8k"], options), which="both"))
    after = json.loads((trained / "results.json").read_text())
    assert set(found["gsm8k"]) == {"base", "trained"} == set(after["tasks"]["gsm8k"])
    assert after["loss"] == before["loss"]
    assert after["tasks"]["gsm8k"]["base"]["adapter"] is None


def test_losses_are_those_that_training_reported(trained, tmp_path):
    reported = json.loads((trained / "results.json").read_text())["loss"]
    job = Job(tasks=task_jobs(["loss"], Options(folder=Path())), which="both", batch_size=4)
    found = evaluate(str(trained), job, destination=tmp_path)["loss"]
    assert found["base"].metrics["loss"] == pytest.approx(reported["base"], rel=1e-6)
    assert found["trained"].metrics["loss"] == pytest.approx(reported["final"], rel=1e-6)
    # The adapter alone says how rows become text, but not which.
    alone = Job(tasks=task_jobs(["loss"], Options(folder=Path(), data=QUESTIONS, limit=4)))
    scores = evaluate(str(trained / "adapter"), alone, destination=tmp_path)["loss"]["trained"]
    assert scores.metrics["loss"] == pytest.approx(reported["final"], rel=1e-6)
    with pytest.raises(InputError, match="--data"):
        evaluate(str(trained / "adapter"), Job(tasks=task_jobs(["loss"], Options(folder=Path()))), destination=tmp_path)


def test_several_processes_give_the_answers_of_one(trained, tmp_path):
    arguments = ["--task", "gsm8k", "--task", "loss", "--data", QUESTIONS, "--limit", "5", "--max-new-tokens", "6"]
    rows, losses = {}, {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        where = ("--output", folder, "--processes", count)
        done = forks.run("eval", trained, *arguments, *where, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows[count] = (folder / "evaluation" / "gsm8k-trained" / "rows.jsonl").read_text()
        assert done.stdout.count("exact_match 0.") + done.stdout.count("exact_match 1.") == 1
        losses[count] = json.loads((folder / "results.json").read_text())["tasks"]["loss"]["trained"]["metrics"]
    assert rows[1] == rows[2]
    assert losses[1] == losses[2]


class StandIn:
    """vLLM's interface with transformers and PEFT behind it: what it is given has to be enough to answer the same."""

    def __init__(self, model, enable_lora=False, max_lora_rank=16, **_):
        self.base, self.rank = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), max_lora_rank
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def generate(self, prompts, parameters, lora_request, use_tqdm):
        model = self.base
        if lora_request:
            config = PeftConfig.from_pretrained(lora_request.path)
            if sys.modules["vllm"].__version__ == "0.31.0":
                # What it ignores is not there.
                assert (config.rank_pattern, config.alpha_pattern, config.use_rslora) == ({}, {}, False)
                assert config.r == config.lora_alpha == self.rank
            else:
                assert lora_request.path == self.native
            model = PeftModel.from_pretrained(model, lora_request.path)
        found = []
        for prompt, asked in zip(prompts, parameters, strict=True):
            ids = plainly(model, self.tokenizer, prompt["prompt_token_ids"], asked.max_tokens)
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            found.append(SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=ids)]))
        if lora_request:
            self.base = model.unload()
        return found


@pytest.fixture(params=["0.31.0", "0.32.0"])
def stand_in(request, monkeypatch, trained):
    version = request.param
    monkeypatch.setattr(StandIn, "native", str(trained / "adapter"), raising=False)
    module, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.__version__, module.LLM, module.SamplingParams = version, StandIn, SimpleNamespace
    module.__spec__ = ModuleSpec("vllm", None)
    request.LoRARequest = lambda name, number, path: SimpleNamespace(path=path)
    for name, each in (("vllm", module), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, each)


def test_the_other_backend_is_given_what_it_needs_to_answer_the_same(trained, stand_in):
    texts = [f"Question: {number} pens and {number} more?\nAnswer:" for number in (3, 5)]
    named = find_subject(str(trained))
    ours, other = load_subject(named), load_subject(named, backend="vllm")
    for base in (False, True):
        asked = [replace(subject, base=base).complete(texts, Sampling(max_new_tokens=8)) for subject in (ours, other)]
        assert asked[0] == asked[1]


def test_a_backend_that_is_not_installed_is_named(trained):
    with pytest.raises(InputError, match=r"gora-finetune\[vllm\]"):
        load_subject(find_subject(str(trained)), backend="vllm")


class Answering:
    """A subject that gives set answers to rows."""

    converses = False

    def __init__(self, answers, choices):
        self.answers, self.choices = answers, choices

    def label(self, rows):
        found = [answer if answer in self.choices else None for answer in self.answers]
        return [
            (None if label is None else self.choices.index(label), answer)
            for label, answer in zip(found, self.answers, strict=True)
        ]


@pytest.mark.parametrize("kind", ["all of GLUE", "its own folder", "saved"])
def test_a_folder_may_hold_all_of_glue_or_the_one_set(tmp_path, kind):
    folder = ROOT / "tests" / "fixtures" / "rows" / "glue"
    if kind != "all of GLUE":
        folder = folder / "sst2"
    if kind == "saved":
        datasets.load_dataset(str(folder)).save_to_disk(tmp_path / "saved")
        folder = tmp_path / "saved"
    questions = task_named("glue/sst2").questions(Options(folder=tmp_path, data=str(folder)))
    assert [row["sentence"] for _, row in questions.rows] == ["it never finds its feet ", "a small delight "]


def test_glue_scores_rows_as_its_metrics_say(tmp_path):
    labels = [1, 0, 1, 1]
    rows = [{"sentence": f"s{number}", "label": label, "idx": number} for number, label in enumerate(labels)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subject = Answering(["good", "bad", "bad", "maybe"], ["bad", "good"])
    options = Options(folder=tmp_path, data=str(tmp_path / "rows.jsonl"))
    assert task_named("glue/sst2").evaluate(subject, options).metrics == {"accuracy": 0.5}
    scores = task_named("glue/mrpc").evaluate(subject, options)
    # Class 1: one of one predicted is right, of three in all.
    assert scores.metrics == {"accuracy": 0.5, "f1": 0.5}
    assert scores.facts["no_label"] == 1
    assert [row["correct"] for row in scores.rows] == [True, True, False, False]


def test_labels_are_the_texts_that_were_trained(tokenizer):
    data = DataSection(
        train=SourceSection(path="-"), template="sst2 sentence: {sentence}", response="label", choices=["bad", "good"]
    )
    asked = []

    class Backend:
        def generate(self, prompts, sampling, advance, *, base):
            asked.extend(prompts)
            return [[" good"], ["bad "], ["goods"]]

    prompting = Prompting(data, tokenizer)
    rows = [(f"rows.jsonl:{number}", {"sentence": text}) for number, text in enumerate(("a", "b", "c"), start=1)]
    assert LocalSubject(prompting=prompting, backend=Backend()).label(rows) == [
        (1, "good"),
        (0, "bad"),
        (None, "goods"),
    ]
    assert asked == prompting.ids([f"sst2 sentence: {text}" for text in "abc"])
    with pytest.raises(InputError, match=r"rows\.jsonl:9.*sentence"):
        LocalSubject(prompting=prompting, backend=Backend()).label([("rows.jsonl:9", {"text": "x"})])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "gsm8"], "did you mean 'gsm8k'"),
        (["--task", "gsm8k", "--base", "--both"], "give one of the two"),
        (["--task", "gsm8k", "--data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_a_wrong_command_is_answered_before_a_model_is_loaded(gora_here, tmp_path, trained, arguments, said):
    code, _, errors = gora_here("eval", trained, *arguments, cwd=tmp_path)
    assert code == 2
    assert said in " ".join(errors.split())


def test_a_folder_that_holds_nothing_to_evaluate_is_named(tmp_path):
    with pytest.raises(InputError, match="neither a run"):
        find_subject(str(tmp_path))


def test_a_run_that_never_finished_is_not_evaluated(trained, tmp_path):
    (tmp_path / "recipe.yaml").write_text((trained / "recipe.yaml").read_text())
    with pytest.raises(InputError, match="gora run --resume"):
        find_subject(str(tmp_path))


def test_a_model_of_its_own_has_no_base(tmp_path):
    options = Options(folder=Path(), data=QUESTIONS, limit=1)
    with pytest.raises(InputError, match="there is no base"):
        evaluate(str(TINY), Job(tasks=task_jobs(["gsm8k"], options), which="both"), destination=tmp_path)
