"""Adapters that go to the hub and come from there, through its real client and a stand-in on this machine."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gora.errors import InputError
from gora.plan import read_plan
from gora.recipe import load_recipe
from gora.runs.card import make_card, write_card
from gora.runs.folder import RunFolder
from gora.runs.replacing import refuse_foreign_files
from gora.runs.state import RunState, find_progress
from gora.stages.push import push
from gora.stages.run import run as run_recipe
from tests.conftest import ROOT, TINY
from tests.helpers.cards import loaded_as_told
from tests.helpers.hub import TOKEN, serving

BASE = "me/tiny-6m"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a few steps, with a task at its end."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    settings = ("gora.steps=2", "data.train.max_rows=32", "data.eval.max_rows=4", "data.max_length=128")
    task = "[{name: gsm8k, path: 'builtin:gsm8k/test.jsonl', max_rows: 2, max_new_tokens: 4}]"
    description = "description=Counting apples"
    recipe = load_recipe("quickstart", [*settings, f"evaluation.tasks={task}", f"output={folder}", description]).recipe
    run_recipe(recipe)
    return RunFolder(folder)


@pytest.fixture
def copied(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """An adapter that plain PEFT has made on a base of the hub: other ranks and scales for some layers, and no note."""
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    config = LoraConfig(
        r=4,
        lora_alpha=9,
        use_rslora=True,
        target_modules=r"model\.layers\.[0-3]\.(self_attn\.[qv]_proj|mlp\.down_proj)",
        rank_pattern={"down_proj": 7},
        alpha_pattern={"v_proj": 3},
        task_type="CAUSAL_LM",
        base_model_name_or_path=BASE,
    )
    torch.manual_seed(0)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
    wrapped.peft_config["default"].base_model_name_or_path = BASE
    wrapped.save_pretrained(folder)
    return folder


def python(*arguments, cwd, env):
    named = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=named, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def commands(*lines, cwd, env):
    told = python("-m", "tests.helpers.several", json.dumps([list(map(str, line)) for line in lines]), cwd=cwd, env=env)
    return json.loads(told.splitlines()[-1])


def test_the_card_says_what_the_run_s_files_say(run):
    card = ModelCard.load(run.adapter / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert card.data.base_model is None
    results, plan = json.loads(run.results.read_text()), read_plan(run.plan)
    text = card.text
    assert f"| base model | {results['loss']['base']:.4f} |" in text
    assert f"| trained | {results['loss']['final']:.4f} |" in text
    assert f"{results['trainable_parameters']:,} trained parameters" in text
    exact = results["tasks"]["gsm8k"]["trained"]["metrics"]["exact_match"]
    assert f"| gsm8k | exact_match |  | {exact:.4f} | 2 |" in text
    assert "Counting apples." in text
    assert "Question: {prompt}\nAnswer:" in text
    for setting, decision in plan.decisions.items():
        assert f"| `{setting}` | `" in text
        assert decision.origin in text
    picture = text.partition("```text\nranks ")[2].partition("```")[0]
    rows = [line.split() for line in picture.splitlines() if line.strip()[:1].isdigit()][-6:]
    ranks = {module.name: module.rank for module in plan.modules}
    for row in rows:
        names = [f"model.layers.{row[0]}.self_attn.{kind}_proj" for kind in "qkvo"]
        assert [int(cell) for cell in row[1:]] == [ranks[name] for name in names]
    assert len(rows) == 6


def test_the_lines_of_the_card_load_the_adapter(run):
    model, tokenizer = loaded_as_told(run.adapter)
    ids = tokenizer("Question: 1 + 1?\nAnswer:", return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(TINY)
    expected = PeftModel.from_pretrained(base, str(run.adapter)).eval()(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, expected)
    with model.disable_adapter():
        assert not torch.equal(model(input_ids=ids).logits, expected)


def test_a_base_in_a_folder_is_not_taken_for_a_model_of_its_name_on_the_hub(copied, tmp_path):
    recipe = yaml.safe_load(copied.recipe.read_text())
    recipe["model"]["name"] = str(tmp_path / "gpt2")
    copied.recipe.write_text(yaml.safe_dump(recipe))
    card = ModelCard(make_card(copied))
    assert card.data.base_model is None
    assert "`BASE` is the folder of the base model, `gpt2`." in card.text and "vllm serve BASE" in card.text


def test_a_card_that_changes_leaves_the_adapter_whole(copied):
    results = json.loads(copied.results.read_text())
    results["tasks"]["gsm8k"]["base"] = {"metrics": {"exact_match": 0.25}}
    copied.results.write_text(json.dumps(results))
    write_card(copied)
    assert "| gsm8k | exact_match | 0.2500 | " in (copied.adapter / "README.md").read_text()
    assert find_progress(copied).state == RunState.FINISHED


def test_what_a_killed_command_left_of_a_card_stops_nobody(copied):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    left = copied.adapter / f".writing-new-README.md-{socket.gethostname().replace('-', '_')}-{dead.stdout.strip()}"
    left.write_text("# half")
    refuse_foreign_files(copied)
    assert not left.exists()


def test_a_card_that_cannot_be_made_is_told_and_no_more(copied, capsys):
    before = (copied.adapter / "README.md").read_text()
    copied.decisions.write_text("{")
    write_card(copied)
    assert "is not up to date" in capsys.readouterr().out
    assert (copied.adapter / "README.md").read_text() == before


@pytest.mark.parametrize("named", ["path", "adapter"])
def test_a_dry_run_lists_what_would_be_uploaded(run, capsys, named):
    result = push(getattr(run, named), "me/mine", base=BASE, dry_run=True)
    assert result.url is None
    assert result.files["adapter_model.safetensors"] == (run.adapter / "adapter_model.safetensors").stat().st_size
    told = capsys.readouterr().out
    assert all(name in told for name in result.files)
    assert "private" in told


@pytest.mark.parametrize(
    ("repository", "options", "told"),
    [
        ("mine", {"base": BASE}, "ORG/NAME"),
        ("me/a/b", {"base": BASE}, "ORG/NAME"),
        ("me/mine", {"base": "/home/me/model"}, "--base"),
        ("me/mine", {"base": BASE, "dry_run": False}, "HF_HUB_OFFLINE"),
    ],
)
def test_what_cannot_be_pushed_is_refused(run, repository, options, told):
    with pytest.raises(InputError, match=told):
        push(run.path, repository, **{"dry_run": True, **options})


def test_a_base_in_a_folder_of_this_machine_has_to_be_named(copied, tmp_path):
    shutil.copytree(TINY, tmp_path / "base")
    copied.recipe.write_text(copied.recipe.read_text().replace("builtin:tiny-6m", str(tmp_path / "base")))
    with pytest.raises(InputError, match="--base ORG/NAME"):
        push(copied.path, "me/mine", dry_run=True)
    push(copied.path, "me/mine", base=BASE, dry_run=True)


def test_a_base_that_ships_with_gora_is_named_as_gora_does(run, capsys):
    push(run.path, "me/mine", dry_run=True)
    assert "ships with gora" in capsys.readouterr().out
    card = make_card(run, place="me/mine")
    assert 'base = AutoModelForCausalLM.from_pretrained("BASE")\n' in card
    assert 'PeftModel.from_pretrained(base, "me/mine")' in card
    assert "`BASE` is the folder of the base model, `builtin:tiny-6m`" in card


def test_a_run_that_is_not_finished_is_refused(copied, tmp_path):
    copied.results.unlink()
    with pytest.raises(InputError, match="not finished"):
        push(copied.path, "me/mine", base=BASE, dry_run=True)
    with pytest.raises(InputError, match="not a run folder"):
        push(tmp_path, "me/mine", base=BASE, dry_run=True)


@pytest.mark.parametrize("secret", [TOKEN, f"{Path.home()}/notes.txt"])
def test_a_token_or_a_path_of_this_machine_is_not_uploaded(copied, secret):
    copied.recipe.write_text(copied.recipe.read_text().replace("Counting apples", f"See {secret}"))
    with pytest.raises(InputError, match=r"README.md holds a (token|path)"):
        push(copied.path, "me/mine", base=BASE, dry_run=True)


_BY_PEFT = """
import json, sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
print(json.dumps(model(input_ids=torch.tensor([[5, 9, 200, 31]])).logits[0, -1].tolist()))
"""


def test_a_run_goes_to_the_hub_and_peft_loads_it_from_there(run, tmp_path):
    with serving() as (hub, env):
        hub.add(BASE, TINY)
        hub.add("me/public", run.adapter)
        env |= {"HF_HOME": str(tmp_path / "hub")}
        pushed, again, opened, closed, shown = commands(
            ["push", run.path, "me/mine", "--base", BASE],
            ["push", run.path, "me/mine", "--base", BASE],
            ["push", run.path, "me/mine", "--base", BASE, "--public"],
            ["push", run.path, "me/public", "--base", BASE],
            ["push", run.path, "me/open", "--public"],
            cwd=tmp_path,
            env=env,
        )
        (asked,) = commands(["generate", "me/open", "--prompt", "1 + 1?", "--max-new-tokens", 2], cwd=tmp_path, env=env)
        (denied,) = commands(
            ["push", run.path, "me/other", "--base", BASE], cwd=tmp_path, env=env | {"HF_TOKEN": "hf_wrong"}
        )
        told = python("-c", _BY_PEFT, "me/mine", cwd=tmp_path, env=env)
    assert [pushed[0], again[0], shown[0], asked[0]] == [0, 0, 0, 0], asked
    assert json.loads(hub.files("me/open")[1]["adapter_config.json"])["base_model_name_or_path"] == "builtin:tiny-6m"
    assert (opened[0], closed[0], denied[0]) == (2, 2, 2)
    assert "me/mine is private" in opened[2]
    assert "me/public is public" in closed[2]
    assert "does not let this login write" in denied[2]
    assert hub.private == {BASE: False, "me/public": False, "me/mine": True, "me/open": False}
    _, files = hub.files("me/mine")
    assert files.keys() == {path.name for path in run.adapter.iterdir()}
    assert files["adapter_model.safetensors"] == (run.adapter / "adapter_model.safetensors").read_bytes()
    everything = b"".join(files.values())
    assert not any(text.encode() in everything for text in (TOKEN, str(ROOT), str(run.path)))
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == BASE
    assert '"me/mine"' in card.text
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), str(run.adapter)
    ).eval()
    expected = model(input_ids=torch.tensor([[5, 9, 200, 31]])).logits[0, -1]
    assert torch.allclose(torch.tensor(json.loads(told.splitlines()[-1])), expected, atol=1e-6)


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """The base, with a chat template: an adapter that says nothing of prompts is asked as its base is."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(TINY, folder)
    turns = "{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(turns + "{% if add_generation_prompt %}assistant:{% endif %}")
    return folder


def test_adapters_and_models_of_the_hub_are_taken_by_their_names(foreign, talking, tmp_path):
    """One of PEFT's, whose base is on the hub as well: what each command needs is fetched, and then read offline."""
    asking = ("--task", "gsm8k", "--data", "builtin:gsm8k/test.jsonl", "--limit", 2, "--max-new-tokens", 4, "--both")
    question = ("--prompt", "What is 3 plus 4?", "--max-new-tokens", "8")
    with serving() as (hub, env):
        hub.add(BASE, talking)
        first = hub.add("me/foreign", foreign)
        hub.commit("me/foreign", {"adapter_model.safetensors": b"damaged"})
        hub.add("me/pickled", foreign)
        del hub.files("me/pickled")[1]["adapter_model.safetensors"]
        elsewhere = json.loads((foreign / "adapter_config.json").read_text()) | {"base_model_name_or_path": "/far/base"}
        hub.add("me/elsewhere", foreign)
        hub.commit("me/elsewhere", {"adapter_config.json": json.dumps(elsewhere).encode()})
        env |= {"HF_HOME": str(tmp_path / "hub")}
        name = f"me/foreign@{first}"
        merged, exported, evaluated, answered, model, damaged, pickled, missing, revision, far, near = commands(
            ["merge", name, "--output", "merged", "--dtype", "float32"],
            ["export", name, "--for", "sglang", "--output", "exported"],
            ["eval", name, *asking, "--output", "found"],
            ["generate", name, *question],
            ["generate", f"{BASE}@main", *question],
            ["merge", "me/foreign", "--output", "other"],
            ["merge", "me/pickled", "--output", "other"],
            ["merge", "me/missing", "--output", "other"],
            ["merge", "me/foreign@nothing", "--output", "other"],
            ["merge", "me/elsewhere", "--output", "other"],
            ["merge", "me/elsewhere", "--base", f"{BASE}@main", "--output", "near"],
            cwd=tmp_path,
            env=env,
        )
    # The stand-in is gone: what was fetched is read from the cache.
    offline, unknown = commands(
        ["generate", name, *question], ["merge", "me/unknown", "--output", "other"], cwd=tmp_path, env=env | OFFLINE
    )
    worked = (merged, exported, evaluated, answered, model, offline, near)
    assert [each[0] for each in worked] == [0] * len(worked), worked
    assert answered[1] == offline[1] != model[1]
    assert not (tmp_path / "other").exists()
    for refused, told in (
        (damaged, "adapter_model.safetensors: not a whole safetensors file"),
        (pickled, "no adapter_model.safetensors; gora reads no pickled weights"),
        (missing, "The hub knows no such repository"),
        (revision, "no such branch, tag or commit"),
        (unknown, "not in the hub's cache"),
        (far, "names it as its base; give another name of it with --base"),
    ):
        assert refused[0] == 2
        assert told in refused[2]
    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), str(foreign)
    ).merge_and_unload()
    held = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(held[key], value) for key, value in by_peft.state_dict().items() if key in held)
    assert json.loads((tmp_path / "exported" / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE


OFFLINE = {"HF_HUB_OFFLINE": "1"}
