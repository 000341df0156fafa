"""Comparisons: real runs in processes of their own, equal footing, shared gradients, and the table's arithmetic."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from gora.comparison import processes
from gora.comparison.shared_pass import shared_passes
from gora.comparison.table import Outcome, comparison_table, markdown, summarize
from gora.comparison.trials import make_trials
from gora.errors import InputError
from gora.gradients.storage import write_shards
from gora.plan import read_factors, read_plan
from gora.recipe import dump_recipe, load_recipe
from gora.recipe.builtin import comparison_paths
from gora.recipe.variants import read_variants
from gora.runs.failure import Failure
from gora.runs.folder import RunFolder
from gora.runtime.interrupt import StopSignal
from gora.stages.compare import compare
from gora.stages.precompute import precompute
from gora.training.rows_checksum import rows_checksum
from tests.helpers import forks

SMALL = (
    "data.train.max_rows=32",
    "data.eval.max_rows=6",
    "data.max_length=128",
    "gora.steps=2",
    "gora.micro_batch_size=2",
    "train.micro_batch_size=2",
    "train.batch_size=4",
    "train.max_steps=3",
    "train.log_steps=1",
)


def gora(*arguments, cwd):
    command = [sys.executable, "-m", "gora", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)


def test_methods_are_compared_in_processes_of_their_own_and_finished_runs_are_not_repeated(tmp_path):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    arguments = ("compare", "quickstart", "--methods", "gora,lora", "--output", "made", "--jobs", "2", *settings)
    first = gora(*arguments, "--vary", "data.max_length=128,8", cwd=tmp_path)
    assert first.returncode == 1, first.stderr
    assert "2 of 4 runs failed" in first.stdout
    rows = {row["label"]: row for row in json.loads((tmp_path / "made" / "comparison.json").read_text())}
    assert set(rows) == {f"{name} max_length={length}" for name in ("gora", "lora") for length in (128, 8)}
    for name in ("gora", "lora"):
        row = rows[f"{name} max_length=128"]
        folder = tmp_path / "made" / "runs" / f"{name}_max_length=128_seed=0"
        result = json.loads((folder / "results.json").read_text())
        assert row["loss"]["mean"] == result["loss"]["final"]
        assert row["trainable"] == result["trainable_parameters"] > 0
        assert row["seeds"] == [0]
        failed = rows[f"{name} max_length=8"]
        assert failed["loss"] is None
        (failure,) = failed["failures"]
        assert (failure["seed"], failure["code"]) == (0, "input")
        assert "leaves no token to train on" in failure["message"]
    assert (tmp_path / "made" / "comparison.png").stat().st_size > 1000
    table = (tmp_path / "made" / "comparison.md").read_text()
    assert "| failed: seed 0: " in table
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made" / "runs").glob("*/results.json")}
    assert len(before) == 2
    once_more = forks.run(*arguments, "--vary", "data.max_length=128", cwd=tmp_path)
    assert once_more.returncode == 0
    assert "compare   2 runs, 2 of them finished before" in once_more.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_folder_with_other_settings_and_unknown_methods_are_refused(tmp_path):
    with pytest.raises(InputError, match="--methods: loraa must be one of gora, lora"):
        compare("quickstart", (), methods=["loraa"], seeds=[0], destination=tmp_path)
    with pytest.raises(InputError, match=r"section\.key=v1,v2 is expected"):
        compare("quickstart", (), methods=["lora"], seeds=[0], vary=["seed"], destination=tmp_path)
    folder = tmp_path / "runs" / "lora_seed=0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart").recipe))
    with pytest.raises(InputError, match="holds a run of other settings"):
        compare("quickstart", (), methods=["lora"], seeds=[0], destination=tmp_path)
    (folder / "recipe.yaml").write_text("model: {name: other}\ngroa: 3\n")
    with pytest.raises(InputError, match="holds a run whose recipe cannot be read") as refused:
        compare("quickstart", (), methods=["lora"], seeds=[0], destination=tmp_path)
    assert any("groa" in problem for problem in refused.value.problems)


def test_a_stopped_comparison_does_not_count_what_it_stopped(tmp_path, monkeypatch, capsys):
    def start(job, place, places):
        (job.folder.path / "output.txt").write_text("")
        return subprocess.Popen(["sleep", "0.1" if job.label == "short" else "60"])

    def stop(number, frame):
        raise StopSignal(signal.SIGINT)

    monkeypatch.setattr(processes, "_start", start)
    commands = [
        processes.Command(label=label, folder=RunFolder(tmp_path / label), arguments=())
        for label in ("short", "long", "longer")
    ]
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 3)
    try:
        with pytest.raises(StopSignal):
            processes.run_commands("runs", commands, 3)
    finally:
        signal.signal(signal.SIGALRM, before)
    said = capsys.readouterr()
    assert "runs 3/3" not in said.out + said.err


def test_a_run_of_a_gora_that_knew_fewer_settings_counts_if_they_are_at_their_defaults(tmp_path):
    def trials():
        return make_trials("quickstart", (), methods=["lora"], variants=(), vary=(), seeds=[0], destination=tmp_path)

    folder = trials()[0].folder
    folder.path.mkdir(parents=True)
    saved = dump_recipe(trials()[0].recipe)
    assert "  init_a: random\n" in saved
    folder.recipe.write_text(saved.replace("  init_a: random\n", "").replace("output: ", "output: /elsewhere"))
    assert len(trials()) == 1
    folder.recipe.write_text(saved.replace("init_a: random", "init_a: gradient"))
    with pytest.raises(InputError, match="holds a run of other settings"):
        trials()


# Equal footing and shared gradients


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The comparison of GoRA's parts, as it is typed; its run folders by label."""
    folder = tmp_path_factory.mktemp("parts")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    arguments = ("quickstart", "--variants", "ablations/parts", "--output", "made", "--jobs", "2", *settings)
    done = forks.compare(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = {row["label"]: row for row in json.loads((folder / "made" / "comparison.json").read_text())}
    assert not any(row["failures"] for row in rows.values())
    names = {label: label.replace(", ", "_").replace(" ", "_") for label in rows}
    runs = {label: RunFolder(folder / "made" / "runs" / f"{name}_seed=0") for label, name in names.items()}
    return done.stdout, rows, runs, lambda: forks.compare(*arguments, cwd=folder)


def test_runs_of_a_comparison_take_the_same_steps_on_the_same_rows_with_as_many_parameters(parts):
    _, rows, runs, _ = parts
    seen = {}
    for label, run in runs.items():
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        seen[label] = [(line["step"], line["rows"]) for line in lines if "loss" in line]
    assert [step for step, _ in seen["rsLoRA"]] == [1, 2, 3]
    assert all(steps == seen["rsLoRA"] for steps in seen.values())
    lora = rows["rsLoRA"]["trainable"]
    assert all(row["trainable"] == pytest.approx(lora, rel=0.1) for row in rows.values())
    # The first step of the warm-up has the rate zero.
    second = {label: json.loads(run.metrics.read_text().splitlines()[1]) for label, run in runs.items()}
    ratios = {label: line["learning_rate_b"] / line["learning_rate_a"] for label, line in second.items()}
    assert ratios == {label: pytest.approx(1 if label == "rsLoRA" else 16) for label in runs}


def test_each_part_of_gora_is_what_it_says(parts):
    _, rows, runs, _ = parts
    plans = {label: read_plan(run.plan) for label, run in runs.items() if run.plan.exists()}
    assert list(plans) == ["GoRA, ranks only", "GoRA, initial values only", "GoRA"]
    ranks = {label: {module.rank for module in plan.modules} for label, plan in plans.items()}
    assert ranks["GoRA, initial values only"] == {8}
    assert len(ranks["GoRA"]) > 3
    assert ranks["GoRA, ranks only"] == ranks["GoRA"]
    for label, plan in plans.items():
        factors = read_factors(runs[label].plan, plan)
        assert all(factor_b.any() != (label == "GoRA, ranks only") for _, factor_b in factors.values())
    assert rows["GoRA, ranks only"]["initial"] == pytest.approx(rows["rsLoRA"]["initial"], abs=1e-6)
    assert rows["GoRA"]["initial"] < rows["rsLoRA"]["initial"]


def test_a_plan_from_shared_gradients_is_the_plan_of_a_pass_of_its_own(parts, tmp_path):
    said, _, runs, _ = parts
    assert "gradients 1 pass for 3 runs" in said
    for number, label in enumerate(("GoRA, ranks only", "GoRA, initial values only", "GoRA")):
        shared = read_plan(runs[label].plan)
        own = precompute(load_recipe(str(runs[label].recipe), [f"output={tmp_path / str(number)}"]).recipe)
        # What was the schema's default there is a line of the recipe here.
        settings = {"modules", "decisions"}
        assert shared.model_dump(exclude=settings) == own.plan.model_dump(exclude=settings)
        assert [module.rank for module in shared.modules] == [module.rank for module in own.plan.modules]
        pairs = zip(
            read_factors(runs[label].plan, shared).values(), read_factors(own.path, own.plan).values(), strict=True
        )
        for (shared_a, shared_b), (own_a, own_b) in pairs:
            assert torch.equal(shared_a, own_a)
            assert (shared_b - own_b).norm() <= 1e-4 * own_b.norm()


def test_shared_gradients_are_deleted_and_nothing_is_run_twice(parts):
    said, _, runs, again = parts
    assert "is deleted: every run that starts from it is finished" in said
    made = runs["GoRA"].path.parent.parent
    assert not list(made.glob("gradients/*/gradients"))
    before = {run.results: run.results.stat().st_mtime_ns for run in runs.values()}
    done = again()
    assert "5 runs, 5 of them finished before" in done.stdout
    assert "gradients" not in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def trials_of(tmp_path, variants, **more):
    wanted = read_variants(variants).variants
    options = {"methods": (), "vary": (), "seeds": [0, 1], **more}
    return make_trials("quickstart", (), variants=wanted, destination=tmp_path, **options)


def test_passes_are_shared_by_runs_that_gradients_cannot_tell_apart(tmp_path):
    passes = shared_passes(trials_of(tmp_path, "ablations/table5"), tmp_path)
    assert [len(shared.trials) for shared in passes] == [7, 7]
    varied = trials_of(tmp_path, "ablations/table6", vary=["gora.steps=2,3"], seeds=[0])
    assert [len(shared.trials) for shared in shared_passes(varied, tmp_path)] == [3, 3]
    # What comes after the gradients makes no other pass; one run alone needs no shared one.
    after = trials_of(tmp_path, "ablations/table6", vary=["train.learning_rate=1e-4,2e-4"], seeds=[0])
    assert [len(shared.trials) for shared in shared_passes(after, tmp_path)] == [6]
    assert shared_passes(trials_of(tmp_path, "ablations/parts", seeds=[0])[:3], tmp_path) == []
    # Steps are tried on the model, and a pass that ends by itself may end elsewhere in another run.
    for auto in ("gora.gamma=auto", "gora.steps=auto"):
        looked_for = make_trials(
            "quickstart", (auto,), variants={}, destination=tmp_path, methods=("gora",), vary=(), seeds=[0]
        )
        assert shared_passes([*looked_for, *looked_for], tmp_path) == []


def test_gradients_of_which_a_file_is_missing_are_collected_anew(tmp_path):
    (shared,) = shared_passes(trials_of(tmp_path, "ablations/table6", seeds=[0]), tmp_path)
    assert shared.needed
    write_shards(shared.folder.gradients, [("layer", torch.ones(2, 2))], {})
    assert not shared.needed
    (file,) = shared.folder.gradients.glob("*.safetensors")
    file.unlink()
    assert shared.needed


def test_the_directions_differ_in_a_alone_and_share_their_gradients(tmp_path):
    trials = {trial.label: trial for trial in trials_of(tmp_path, "ablations/directions", seeds=[0])}
    drawn, along = trials["GoRA"].recipe, trials["GoRA, A of the gradient"].recipe
    assert along.gora == drawn.gora.model_copy(update={"init_a": "gradient"})
    assert along.model_copy(update={"gora": drawn.gora, "output": drawn.output}) == drawn
    equal = trials["GoRA, A of the gradient, one rate, equal ranks"].recipe
    assert equal.gora == along.gora.model_copy(update={"rank_min": drawn.adapter.rank, "rank_max": drawn.adapter.rank})
    assert equal.train == drawn.train.model_copy(update={"loraplus_lr_ratio": 1})
    (shared,) = shared_passes(trials.values(), tmp_path)
    assert {trial.label for trial in shared.trials} == {label for label in trials if label.startswith("GoRA")}


def test_the_ablations_are_those_of_the_paper(tmp_path):
    table5 = [
        (4, 32, 8e-2),
        (4, 32, 5e-2),
        (4, 32, 3e-2),
        (4, 32, 0),
        (0, "unbounded", 5e-2),
        (6, 15, 5e-2),
        (8, 8, 5e-2),
    ]
    settings = [trial.recipe.gora for trial in trials_of(tmp_path, "ablations/table5", seeds=[0])]
    assert [(one.rank_min, one.rank_max, one.gamma) for one in settings] == table5
    settings = [trial.recipe.gora.importance for trial in trials_of(tmp_path, "ablations/table6", seeds=[0])]
    assert settings == ["sensitivity", "nuclear-product", "nuclear-gradient"]
    names = {"ablations/parts", "ablations/table5", "ablations/table6", "ablations/directions"}
    assert set(comparison_paths()) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: [a]", "own.yaml:1: variants: expected labels"),
        ("variants:\n  a: 3\n", "own.yaml:2: variants.a: expected settings"),
        ("variants:\n  a:\n    gora: {gamma: 1}\n", "own.yaml:3: variants.a.gora: expected one value"),
        ("variants:\n  a: {}\nvaraints: 3\n", "own.yaml:3: varaints: unknown key"),
        ("variants: {a: {}}\nshare_gradients: 3\n", "own.yaml:2: share_gradients: expected true or false"),
        ("variants:\n  a: {}\n  a: {}\n", "own.yaml:3: variants.a: given twice"),
        ("variants:\n  a: {gora.gama: 1}\n", "(?s)own.yaml:2: variants.a does not go with .*did you mean 'gamma'"),
        ("variants: {a b: {}, a_b: {seed: 1}}", "Two runs have one folder, .*'a b' and 'a_b' with seed 0"),
    ],
)
def test_a_file_of_variants_that_is_wrong_is_answered_with_file_and_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        compare("quickstart", (), seeds=[0], variants="own.yaml", destination=tmp_path / "made")


def test_nothing_to_compare_unknown_variants_and_two_methods_for_one_run_are_refused(tmp_path):
    with pytest.raises(InputError, match="Give --methods, --variants, --vary or --tune"):
        compare("quickstart", (), seeds=[0], destination=tmp_path)
    with pytest.raises(
        InputError, match=r"neither a file nor a built-in comparison \(ablations/directions, ablations/parts"
    ):
        compare("quickstart", (), seeds=[0], variants="ablations/table7", destination=tmp_path)
    with pytest.raises(InputError, match=r"names a method of its own\. Leave --methods out"):
        compare("quickstart", (), seeds=[0], methods=["lora"], variants="ablations/parts", destination=tmp_path)


def test_the_record_of_rows_tells_rows_apart_and_nothing_else():
    def batch(*rows, width=4):
        ids, mask, labels = (torch.full((len(rows), width), filler) for filler in (0, 0, -100))
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
            labels[number, 1 : len(row)] = torch.tensor(row[1:])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    one, other = [5, 6, 7], [8, 9]
    whole = rows_checksum(batch(one, other))
    assert whole == rows_checksum(batch(other, one, width=9))
    assert whole == rows_checksum(batch(one)) + rows_checksum(batch(other))
    untrained = batch(one, other)
    untrained["labels"][0] = -100
    changed = [
        batch([5, 6, 8], other),
        batch([5, 9, 7], [8, 6]),
        batch([6, 5, 7], other),
        batch(one, other, [0, 0]),
        untrained,
    ]
    assert len({whole.item(), *(rows_checksum(each).item() for each in changed)}) == 6
    # A row without any label only keeps a process busy that has none of its own.
    assert whole == rows_checksum(batch(one, other, [3]))


def test_a_varied_setting_is_named_with_its_whole_value(tmp_path):
    vary = ["train.learning_rate=0.001,1.001"]
    trials = make_trials("quickstart", (), methods=["lora"], variants=(), vary=vary, seeds=[0], destination=tmp_path)
    assert [trial.label for trial in trials] == ["lora learning_rate=0.001", "lora learning_rate=1.001"]
    assert [trial.recipe.train.learning_rate for trial in trials] == [0.001, 1.001]


def outcome(label, seed, final, failure=None):
    result = {
        "loss": {"initial": 3.0, "final": final},
        "trainable_parameters": 100,
        "seconds": 2.0,
        "peak_bytes": {"host": 10**9},
    }
    why = Failure(code="crash", message=failure) if failure else None
    return Outcome(label=label, seed=seed, failure=why, result={} if failure else result, curve=[(1, final)])


def test_seeds_whose_adapter_is_worse_than_its_base_are_named_below_their_row(capsys):
    runs = [outcome("a", 1, 2.0), outcome("a", 2, 3.5), outcome("b", 1, 2.0)]
    for run, worse in zip(runs, (False, True, False), strict=True):
        run.result["worse_than_base"] = worse
    rows = summarize(runs)
    assert [row.as_json()["worse_than_base"] for row in rows] == [(2,), ()]
    lines = markdown(rows).splitlines()
    assert lines[3] == "| | worse than its base: seed 2 |"
    assert len(lines) == 5
    Console(width=200).print(comparison_table(rows))
    assert capsys.readouterr().out.count("worse than its base: seed 2") == 1


def test_rows_hold_mean_and_sample_deviation_and_a_failed_seed_is_named():
    runs = [outcome("a", 0, 1.0), outcome("a", 1, 2.0), outcome("b", 0, 1.2), outcome("b", 1, 0, "it broke")]
    first, second = summarize(runs)
    assert (first.loss.mean, first.seeds) == (1.5, (0, 1))
    assert first.loss.deviation == pytest.approx(0.5**0.5)
    assert (second.loss.mean, second.loss.deviation, second.seeds) == (1.2, None, (0,))
    assert second.failures == ({"seed": 1, "code": "crash", "message": "it broke"},)
    lines = markdown([first, second]).splitlines()
    assert "*1.5000 ± 0.7071*" in lines[2]
    assert "**1.2000**" in lines[3]
    assert "failed: seed 1: it broke" in lines[4]


def with_task(run, value):
    run.result["tasks"] = {"gsm8k": {"trained": {"metrics": {"exact_match": value, "marked": 1.0}}}}
    return run


def test_the_main_figure_of_a_task_has_a_column_in_which_more_is_better():
    runs = [with_task(outcome("a", seed, 1.0), value) for seed, value in enumerate((0.2, 0.4))]
    runs += [with_task(outcome("b", seed, 2.0), value) for seed, value in enumerate((0.5, 0.5))]
    # One of its seeds has not finished the task.
    runs += [with_task(outcome("c", 0, 3.0), 0.9), outcome("c", 1, 3.0)]
    rows = summarize(runs)
    assert rows[0].tasks["gsm8k exact_match"].mean == pytest.approx(0.3)
    assert rows[0].tasks["gsm8k exact_match"].deviation == pytest.approx(0.02**0.5)
    head, _, *lines = markdown(rows).splitlines()
    column = [cell.strip() for cell in head.split("|")].index("gsm8k exact_match")
    cells = [line.split("|")[column].strip() for line in lines]
    assert cells == ["*0.3000 ± 0.1414*", "**0.5000 ± 0.0000**", ""]
