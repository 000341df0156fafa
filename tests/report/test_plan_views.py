"""Decisions of a plan, two plans side by side, and the curves in the picture."""

import json
import random
from xml.etree import ElementTree

import pytest

from gora.errors import InputError
from gora.plan import Decision, Plan, read_plan, write_plan
from gora.report.decisions import decisions_of
from gora.report.plan_views import pass_taken
from gora.report.ranks import rank_data, rank_report
from gora.report.two_plans import compare_plans, comparison_report, rank_correlation
from tests.report.test_report import llama, make_plan, render

CURVE = ((0.0, 2.5), (0.05, 2.4), (0.4, 2.2), (3.2, 9.0))
GAMMA = Decision(value=0.4, origin="measured", why="loss 2.2000, 2.5000 with the base", curve=CURVE)
RATE = Decision(value=1e-3, origin="preset", why="the preset's", curve=((1e-4, 2.3), (1e-3, 2.1), (1e-2, 2.6)))


def test_decisions_come_before_ranks_with_who_decided_and_why():
    text = render(rank_report(llama(2, decisions={"gora.gamma": GAMMA, "train.learning_rate": RATE})), width=120)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["decided", "value", "from", "why"]
    assert lines[2][:3] == ["gora.gamma", "0.4", "measured"]
    assert "2.5000 with the base" in text
    assert lines[3][:3] == ["train.learning_rate", "0.001", "preset"]
    assert text.index("train.learning_rate") < text.index("ranks 4 to")


def test_an_earlier_plan_without_decisions_shows_its_settings():
    plan = llama(1, gamma=0.08, init_a="gradient")
    assert not plan.decisions
    found = decisions_of(plan)
    assert {name: decision.value for name, decision in found.items()} == {
        "gora.allocation": "proportional",
        "gora.importance": "sensitivity",
        "gora.init_a": "gradient",
        "gora.step": "gradient",
        "gora.gamma": 0.08,
        "gora.steps": 64,
    }
    assert {decision.origin for decision in found.values()} == {"recipe"}


def test_the_document_has_room_for_decisions_of_others_and_reads_them_back():
    plan = llama(1, decisions={"gora.gamma": GAMMA, "adapter.targets": Decision(value=["q_proj"], origin="preset")})
    document = json.loads(json.dumps(rank_data(plan)))
    assert document["decisions"]["gora.gamma"]["from"] == "measured"
    assert document["decisions"]["gora.gamma"]["curve"][0] == [0.0, 2.5]
    assert document["decisions"]["adapter.targets"]["value"] == ["q_proj"]
    assert Plan.model_validate(document) == plan


def test_a_plan_of_today_s_version_without_the_new_fields_is_read_as_the_paper_s(tmp_path):
    """What plans of version 2 said before they had allocation, step and decisions."""
    plan = make_plan({"l.0.q": ((8, 8), 0)})
    document = plan.model_dump(mode="json")
    for new in ("allocation", "temperature", "step", "scale", "balance", "decisions"):
        document.pop(new)
    document["modules"] = [{k: v for k, v in m.items() if k != "signal"} for m in document["modules"]]
    assert Plan.model_validate(document) == plan
    write_plan(tmp_path / "plan.safetensors", plan, {})
    assert read_plan(tmp_path / "plan.safetensors") == plan


def test_signal_and_what_the_pass_took_are_told():
    plan = llama(1)
    shares = [0.3 + 0.1 * number for number in range(7)]
    modules = [m.model_copy(update={"signal": share}) for m, share in zip(plan.modules, shares, strict=True)]
    taken = {
        "tokens_per_second": 12345.6,
        "seconds": {"gradients": 3.21},
        "peak_bytes": {"host": 5e8, "gpu": 7.2e9},
        "processes": 2,
        "engine": "ddp",
    }
    text = render(rank_report(plan.model_copy(update={"modules": tuple(modules)}), taken), width=200)
    assert "60.0 % of the norm of a gradient in the middle, 30.0 % (model.layers.0.self_attn.q_proj) to 90.0 %" in text
    assert "12,346 tokens/s, 3.2 s, in 2 processes (ddp); at most 0.50 GB on the host, 7.20 GB on the gpu" in text
    assert "signal" not in render(rank_report(plan))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"precompute": {"seconds": 1}}', '{"precompute": null}'])
def test_results_that_do_not_say_what_the_pass_took_are_no_hindrance(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    assert pass_taken(tmp_path / "plan.safetensors") == {}
    assert pass_taken(tmp_path / "none" / "plan.safetensors") == {}


def spearman(one, other):
    """By the formula for ranks without ties."""
    places = [{value: place for place, value in enumerate(sorted(side))} for side in (one, other)]
    squares = sum((places[0][a] - places[1][b]) ** 2 for a, b in zip(one, other, strict=True))
    return 1 - 6 * squares / (len(one) * (len(one) ** 2 - 1))


def test_rank_correlation_is_spearman_s():
    one, other = list(range(1, 20)), list(range(1, 20))
    random.Random(3).shuffle(other)
    assert rank_correlation(one, other) == pytest.approx(spearman(one, other))
    assert rank_correlation([1, 2, 2, 3], [1, 2, 2, 9]) == pytest.approx(1)
    # Places 1.5, 1.5, 3 and 1, 2.5, 2.5.
    assert rank_correlation([1, 1, 2], [1, 2, 2]) == pytest.approx(0.5)
    assert rank_correlation([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    assert rank_correlation([8, 8, 8], [1, 2, 3]) is None


def two():
    one = make_plan({"l.0.q": ((8, 8), 4), "l.0.v": ((8, 8), 9), "l.1.q": ((8, 8), 6), "l.1.v": ((8, 8), 12)})
    other = make_plan(
        {"l.0.q": ((8, 8), 4), "l.0.v": ((8, 8), 11), "l.1.q": ((8, 8), 3), "l.2.v": ((8, 8), 8)},
        gamma=0.4,
        rank_min=2,
        decisions={"gora.gamma": GAMMA},
    )
    return one, other


def test_two_plans_are_compared_rank_by_rank():
    found = json.loads(json.dumps(compare_plans(*two())))
    assert found["settings"]["gora.gamma"] == [0.05, 0.4]
    assert found["settings"]["rank_min"] == [4, 2]
    assert "alpha" not in found["settings"]
    assert found["ranks"] == {
        "l.0.q": [4, 4],
        "l.0.v": [9, 11],
        "l.1.q": [6, 3],
        "l.1.v": [12, None],
        "l.2.v": [None, 8],
    }
    assert found["equal"] == 1
    assert found["correlation"] == pytest.approx(rank_correlation([4, 9, 6], [4, 11, 3]))
    assert found["parameters"] == [16 * 31, 16 * 26]
    assert found["same_model"] and found["same_rows"]


def test_the_comparison_is_told_with_every_layer_that_differs():
    text = render(comparison_report(*two(), ("a/plan.safetensors", "b/plan.safetensors")), width=100)
    lines = [line.split() for line in text.splitlines()]
    assert ["gora.gamma", "0.05", "0.4"] in lines
    assert ["l.0.v", "9", "11", "+2"] in lines
    assert ["l.1.q", "6", "3", "-3"] in lines
    assert ["l.1.v", "12", "no", "such", "layer"] in lines
    assert not any(line[:1] == ["l.0.q"] for line in lines)
    assert "1 of 5 ranks" in text
    assert "496 and 416 parameters, 0.84x" in text
    assert "0.500 (Spearman)" in text


def test_a_plan_equals_itself_and_other_models_and_rows_are_told():
    plan = llama(2)
    text = render(comparison_report(plan, plan, ("a", "b")))
    assert "14 of 14 ranks" in text and "1.00x" in text and "rank by rank" not in text
    other = plan.model_copy(
        update={"model": plan.model.model_copy(update={"weights": "x"}), "data": {"fingerprint": "e"}}
    )
    text = render(comparison_report(plan, other, ("a", "b")))
    assert "not the same base model" in text and "not the same training rows" in text


def test_the_picture_has_the_curves_of_the_decisions(tmp_path):
    pytest.importorskip("matplotlib")
    from gora.report.plot import plot_ranks

    def texts(plan):
        plot_ranks(plan, tmp_path / "p.svg")
        root = ElementTree.parse(tmp_path / "p.svg").getroot()
        return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]

    found = texts(llama(4, decisions={"gora.gamma": GAMMA, "train.learning_rate": RATE}))
    assert {"gora.gamma: 0.4", "train.learning_rate: 0.001", "gamma (loss, dashed: the base)"} <= set(found)
    assert not any("gamma" in text for text in texts(llama(4)))


def test_the_command_compares_two_plans_and_draws_one(tmp_path, gora_here):
    for name, plan in zip(("a", "b"), two(), strict=True):
        (tmp_path / name).mkdir()
        empty = plan.model_copy(
            update={"modules": tuple(m.model_copy(update={"rank": 0, "scaling": 0.0}) for m in plan.modules)}
        )
        write_plan(tmp_path / name / "plan.safetensors", empty, {})
    code, out, _ = gora_here("inspect-ranks", "a", "b", "--json", cwd=tmp_path)
    assert code == 0
    assert json.loads(out)["settings"]["gora.gamma"] == [0.05, 0.4]
    code, out, _ = gora_here("inspect-ranks", "a", "b/plan.safetensors", cwd=tmp_path)
    assert code == 0 and "no such layer" in out
    code, _, err = gora_here("inspect-ranks", "a", "b", "--plot", "p.png", cwd=tmp_path)
    assert code == 2 and "--plot draws one plan" in err
    code, _, err = gora_here("inspect-ranks", "a", "none", cwd=tmp_path)
    assert code == 2 and "no such plan file" in err
    assert not (tmp_path / "p.png").exists()


def test_a_plan_of_a_run_shows_what_its_pass_took(tmp_path, gora_here):
    write_plan(tmp_path / "plan.safetensors", make_plan({"l.0.q": ((8, 8), 0)}), {})
    facts = {"tokens_per_second": 1.0, "seconds": {"gradients": 2.0}, "peak_bytes": {"host": 1}, "processes": 1}
    (tmp_path / "results.json").write_text(json.dumps({"precompute": {**facts, "engine": "zero2"}}))
    _, out, _ = gora_here("inspect-ranks", ".", cwd=tmp_path)
    assert "1 tokens/s, 2.0 s, in 1 process (zero2)" in out
    _, out, _ = gora_here("inspect-ranks", ".", "--json", cwd=tmp_path)
    assert json.loads(out)["pass"]["engine"] == "zero2"


def test_a_run_of_a_method_without_a_plan_is_told_as_that(tmp_path, gora_here):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    code, _, err = gora_here("inspect-ranks", "run", cwd=tmp_path)
    assert code == 2
    assert "run: a run without a plan" in err
    assert "gora report run" in " ".join(err.split())


def test_a_missing_plan_is_named():
    with pytest.raises(InputError, match="no such plan file"):
        read_plan("none.safetensors")
