"""What is said about a plan: the grid, the report on the terminal, its JSON form and the picture."""

import json
import math
import re
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType

from gora.errors import InputError
from gora.plan import DataIdentity, ModelIdentity, ModulePlan, Plan
from gora.report.grid import arrange
from gora.report.heatmap import HeatMap
from gora.report.ranks import rank_data, rank_report
from gora.report.summary import clipped, wanted_ranks

LLAMA_KINDS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}


def make_plan(modules: Mapping[str, tuple[tuple[int, int], int]], advantages: Any = None, **settings: Any) -> Plan:
    """A plan from {name: (shape, rank)}; every module has the same advantage unless told otherwise."""
    shares = advantages or {name: 1 / len(modules) for name in modules}
    fields: dict[str, Any] = {
        "gora_version": "0",
        "model": ModelIdentity(name="some/model", config="c", weights="w"),
        "data": DataIdentity(fingerprint="d"),
        "steps": 64,
        "micro_batch_size": 2,
        "seed": 42,
        "gamma": 0.05,
        "alpha": 16.0,
        "reference_rank": 8,
        "rank_min": 4,
        "rank_max": 32,
        "importance": "sensitivity",
        "budget": "paper",
    }
    records = tuple(
        ModulePlan(
            name=name,
            shape=shape,
            importance=shares[name],
            advantage=shares[name],
            rank=rank,
            scaling=16 / math.sqrt(rank) if rank else 0.0,
            gradient_norm=1.0,
        )
        for name, (shape, rank) in modules.items()
    )
    return Plan(**(fields | settings), modules=records)


def llama(layers: int, rank_of: Any = lambda layer, kind: 4 + (layer + 5 * kind) % 29, **settings: Any) -> Plan:
    kinds = list(LLAMA_KINDS.items())
    modules = {
        f"model.layers.{layer}.{name}": (shape, rank_of(layer, number))
        for layer in range(layers)
        for number, (name, shape) in enumerate(kinds)
    }
    return make_plan(modules, **settings)


def t5_names() -> list[str]:
    names = []
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for block in range(2):
            for layer, attention in enumerate(attentions):
                names += [f"{stack}.block.{block}.layer.{layer}.{attention}.{part}" for part in "qkvo"]
            names += [f"{stack}.block.{block}.layer.{len(attentions)}.DenseReluDense.{part}" for part in ("wi", "wo")]
    return names


def table(names: list[str]) -> dict[str, tuple[str, str]]:
    """(row, column) label of each name, after a check that the names do not collide."""
    grid = arrange(names)
    assert sorted(grid.places) == sorted(names)
    assert len(set(grid.places.values())) == len(names), "two modules share a cell"
    assert len({row.label for row in grid.rows}) == len(grid.rows), "two rows share a label"
    assert len(set(grid.columns)) == len(grid.columns), "two columns share a label"
    return {name: (grid.rows[row].label, grid.columns[column]) for name, (row, column) in grid.places.items()}


def render(content: RenderableType, width: int = 80, **options: Any) -> str:
    console = Console(width=width, **({"file": StringIO(), "color_system": None} | options))
    console.print(content)
    return console.file.getvalue()  # type: ignore[attr-defined]


def numbers_by_row(text: str) -> dict[str, list[str]]:
    """Cells after each row label of a heat map, over all of its panels."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r" *((?:[a-z_]+ )?\d+|other) +([\d· ]+)", line):
            found.setdefault(match[1], []).extend(match[2].split())
    return found


# Grid


def test_llama_layers_are_rows_and_last_name_parts_are_columns() -> None:
    names = [f"model.layers.{layer}.{kind}" for layer in range(12) for kind in LLAMA_KINDS]
    grid = arrange(names)
    assert [row.label for row in grid.rows] == [str(layer) for layer in range(12)]
    assert grid.columns == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert grid.places["model.layers.10.self_attn.v_proj"] == (10, 2)


def test_rows_follow_the_numbers_even_when_names_come_in_alphabetical_order() -> None:
    names = sorted(f"model.layers.{layer}.q_proj" for layer in range(12))
    assert [row.index for row in arrange(names).rows] == [str(layer) for layer in range(12)]


def test_t5_encoder_and_decoder_have_rows_of_their_own_and_attentions_columns_of_their_own() -> None:
    places = table(t5_names())
    assert places["encoder.block.0.layer.0.SelfAttention.q"] == ("encoder 0", "SelfAttention.q")
    assert places["decoder.block.1.layer.0.SelfAttention.q"] == ("decoder 1", "SelfAttention.q")
    assert places["decoder.block.0.layer.1.EncDecAttention.q"] == ("decoder 0", "EncDecAttention.q")
    assert places["encoder.block.1.layer.1.DenseReluDense.wi"] == ("encoder 1", "wi")
    assert places["decoder.block.1.layer.2.DenseReluDense.wi"] == ("decoder 1", "wi")


def test_gpt2_projections_of_attention_and_mlp_are_two_columns() -> None:
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    names = [f"transformer.h.{layer}.{kind}" for layer in range(2) for kind in kinds]
    places = table([*names, "lm_head"])
    assert [places[name] for name in names[:4]] == [
        ("0", "c_attn"),
        ("0", "attn.c_proj"),
        ("0", "c_fc"),
        ("0", "mlp.c_proj"),
    ]
    assert places["lm_head"] == ("other", "lm_head")


def test_bert_dense_layers_are_told_apart_by_as_many_parts_as_it_takes() -> None:
    kinds = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    names = [f"bert.encoder.layer.{layer}.{kind}" for layer in range(2) for kind in kinds]
    places = table([*names, "bert.pooler.dense"])
    assert [places[name][1] for name in names[4:]] == [
        "query",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    assert places["bert.pooler.dense"] == ("other", "pooler.dense")


def test_nested_stages_count_both_numbers() -> None:
    names = [
        f"swin.encoder.layers.{stage}.blocks.{block}.attention.self.query"
        for stage, depth in enumerate((2, 3))
        for block in range(depth)
    ]
    assert [place for place, _ in table(names).values()] == ["0.0", "0.1", "1.0", "1.1", "1.2"]
    assert arrange(names).columns == ("query",)


def test_modules_outside_the_blocks_come_last_wherever_the_model_has_them() -> None:
    places = table(["project_in", "h.0.q_proj", "h.1.q_proj", "lm_head"])
    assert list(places.values()) == [("other", "project_in"), ("0", "q_proj"), ("1", "q_proj"), ("other", "lm_head")]
    assert [row.label for row in arrange(places).rows] == ["0", "1", "other"]


def test_two_towers_of_one_model_do_not_share_rows() -> None:
    names = [f"{tower}.encoder.layers.3.self_attn.q_proj" for tower in ("text_model", "vision_model")]
    assert table(names) == {
        names[0]: ("text_model 3", "q_proj"),
        names[1]: ("vision_model 3", "q_proj"),
    }


def test_experts_get_rows_of_their_own_and_never_collide() -> None:
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    names += [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(2) for expert in range(3)]
    places = table(names)
    assert places["model.layers.1.self_attn.q_proj"] == ("1", "q_proj")
    assert places["model.layers.1.mlp.experts.2.up_proj"] == ("mlp 1.2", "up_proj")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fc1", "fc2"], [("other", "fc1"), ("other", "fc2")]),
        (["mlp.0", "mlp.2"], [("other", "mlp.0"), ("other", "mlp.2")]),
        (["a.head", "b.head"], [("other", "a.head"), ("other", "b.head")]),
        (["h.0.ff.0", "h.0.ff.2"], [("0", "ff.0"), ("0", "ff.2")]),
        (["layers.7.q_proj"], [("7", "q_proj")]),
        (["0.linear"], [("0", "linear")]),
    ],
)
def test_flat_and_odd_names_find_a_place(names: list[str], expected: list[tuple[str, str]]) -> None:
    assert [table(names)[name] for name in names] == expected


# Report


def test_report_at_80_columns_shows_every_rank_in_its_row() -> None:
    plan = llama(32)
    text = render(rank_report(plan))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    rows = numbers_by_row(text)
    for layer in range(32):
        ranks = [str(module.rank) for module in plan.modules if module.name.startswith(f"model.layers.{layer}.")]
        assert rows[str(layer)] == ranks


def test_headers_stay_in_sight_in_a_deep_model() -> None:
    lines = render(rank_report(llama(126))).splitlines()
    headers = [number for number, line in enumerate(lines) if line.split()[:2] == ["q_proj", "k_proj"]]
    assert len(headers) == 4
    assert numbers_by_row("\n".join(lines)).keys() >= {str(layer) for layer in range(126)}


@pytest.mark.parametrize("width", range(22, 90, 3))
def test_columns_that_do_not_fit_fold_into_a_further_table(width: int) -> None:
    names = t5_names()
    plan = make_plan({name: ((768, 768), 100 + number) for number, name in enumerate(names)}, rank_max=None)
    text = render(HeatMap(arrange(names), {module.name: module.rank for module in plan.modules}), width=width)
    assert max(map(len, text.splitlines())) <= width
    rows = numbers_by_row(text)
    for row in ("encoder", "decoder"):
        for block in range(2):
            ranks = [m.rank for m in plan.modules if m.name.startswith(f"{row}.block.{block}.")]
            assert sorted(map(int, rows[f"{row} {block}"])) == ranks


def test_a_folded_table_leaves_out_rows_that_are_empty_in_it() -> None:
    ranks = dict.fromkeys(t5_names(), 7)
    folded = render(HeatMap(arrange(ranks), ranks), width=36).split("\n\n")
    assert len(folded) == 3, "the scale and two tables"
    assert "encoder" in folded[1] and "decoder" in folded[1]
    assert "encoder" not in folded[2] and "decoder" in folded[2]


def test_rank_zero_is_a_dot_and_a_missing_module_is_blank() -> None:
    names = {"l.0.q": ((8, 8), 7), "l.0.k": ((8, 8), 0), "l.1.k": ((8, 8), 5)}
    lines = render(rank_report(make_plan(names, rank_min=0))).splitlines()
    header = next(line for line in lines if line.split() == ["q", "k"])
    first = lines[lines.index(header) + 1]
    second = lines[lines.index(header) + 2]
    assert first.split() == ["0", "7", "·"]
    assert second.split() == ["1", "5"]
    assert second.index("5") == header.index("k")
    ascii_only = render(HeatMap(arrange(names), {name: rank for name, (_, rank) in names.items()}), file=AsciiFile())
    assert "7  ." in ascii_only and "·" not in ascii_only


class AsciiFile(StringIO):
    encoding = "ascii"


def test_colour_goes_with_rank_and_leaves_nothing_behind_without_it() -> None:
    plan = llama(2, lambda layer, kind: 4 if layer == 0 else 32)
    report = rank_report(plan)
    coloured = render(report, force_terminal=True, color_system="truecolor")
    assert "\x1b[38;2;255;255;255;48;2;68;1;84m" in coloured, "the lowest rank: white on dark violet"
    assert "\x1b[38;2;0;0;0;48;2;253;231;37m" in coloured, "the highest rank: black on yellow"
    plain = render(report, no_color=True, force_terminal=True, color_system="truecolor")
    assert "48;2" not in plain and "38;2" not in plain
    assert "ranks 4 to 32" in plain
    assert "\x1b" not in render(report)


def test_letters_stand_out_on_every_background() -> None:
    plan = llama(29, lambda layer, kind: 4 + layer)
    coloured = render(rank_report(plan), force_terminal=True, color_system="truecolor")
    styles = set(re.findall(r"38;2;(\d+);\d+;\d+;48;2;(\d+);(\d+);(\d+)m", coloured))
    assert len(styles) > 20

    def luminance(*parts: int) -> float:
        linear = [((part / 255 + 0.055) / 1.055) ** 2.4 if part > 10 else part / 255 / 12.92 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for letter, *background in styles:
        pair = sorted((luminance(*[int(letter)] * 3), luminance(*map(int, background))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4.5, (letter, background)


def test_totals_are_those_of_plain_arithmetic() -> None:
    modules = {"l.0.q": ((100, 60), 12), "l.0.v": ((20, 60), 0), "l.1.q": ((100, 60), 4), "l.1.v": ((20, 60), 9)}
    plan = make_plan(modules, rank_min=0)
    text = render(rank_report(plan))
    # 12 * 160 + 4 * 160 + 9 * 80 = 3280 and 8 * (160 + 80 + 160 + 80) = 3840.
    assert "3,280 parameters, 0.85x LoRA at rank 8 (3,840)" in text
    assert "1 of 4 layers get no adapter: l.0.v" in text
    table_rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if re.match(r"[qv] ", line)}
    assert table_rows["q"][:6] == ["2", "4", "8.0", "12", "2,560", "78.0"]
    assert table_rows["v"][:6] == ["2", "0", "4.5", "9", "720", "22.0"]


def test_settings_are_told() -> None:
    text = render(rank_report(llama(1, rank_max=None)), width=140)
    assert "64 micro-batches of 2, seed 42" in text
    assert (
        "gamma 0.05, alpha 16, reference rank 8, r_min 4, r_max unbounded, importance sensitivity, budget paper" in text
    )
    assert "A drawn at random" in render(rank_report(llama(1)), width=160)
    assert "A along the gradient" in render(rank_report(llama(1, init_a="gradient")), width=160)
    assert "some/model" in text


def test_names_with_brackets_are_not_taken_for_markup() -> None:
    plan = make_plan({"l.0.q": ((8, 8), 4)}, model=ModelIdentity(name="/data/[bold]/m[/]", config="c", weights="w"))
    assert "/data/[bold]/m[/]" in render(rank_report(plan))


@pytest.mark.parametrize("modules", [{}, {"fc": ((8, 8), 0)}])
def test_a_plan_without_any_adapter_can_be_shown(modules: dict[str, Any]) -> None:
    plan = make_plan(modules, rank_min=0)
    assert "0 parameters" in render(rank_report(plan))
    assert rank_data(plan)["ratio"] in (None, 0.0)


@pytest.mark.parametrize("width", [56, 74, 80])
def test_figures_of_the_largest_models_are_never_cut(width: int) -> None:
    plan = llama(126, lambda layer, kind: 128, reference_rank=128, rank_min=64, rank_max=512)
    text = render(rank_report(plan), width=width)
    assert "…" not in text
    mean_ranks = [line for line in text.splitlines() if re.search(r"\b126 +128 +128\.0 +128 ", line)]
    assert len(mean_ranks) == 7
    assert (f"{126 * 128 * (14336 + 4096):,}" in text) == (width >= 74)


# Clipping


def clipping_plan(**settings: Any) -> Plan:
    """Equal shapes: b / sqrt(m + n) is 4 * 8, so an advantage of a / 32 wants rank a, here 2, 4, 16 and 10."""
    modules = {f"l.0.{kind}": ((32, 32), rank) for kind, rank in (("a", 4), ("b", 4), ("c", 10), ("d", 10))}
    shares = {"l.0.a": 2 / 32, "l.0.b": 4 / 32, "l.0.c": 16 / 32, "l.0.d": 10 / 32}
    return make_plan(modules, shares, **({"rank_max": 10} | settings))


def test_wanted_ranks_are_those_of_the_paper_with_halves_up() -> None:
    assert wanted_ranks(clipping_plan()) == {"l.0.a": 2, "l.0.b": 4, "l.0.c": 16, "l.0.d": 10}
    two = make_plan({"a": ((8, 8), 4), "b": ((8, 8), 4)}, {"a": 4.5 / 16, "b": 11.5 / 16})
    assert wanted_ranks(two) == {"a": 5, "b": 12}
    # Another shape: b = 8 * (sqrt(16) + sqrt(64)) = 96, so half of it is 48 / 4 and 48 / 8.
    uneven = make_plan({"a": ((8, 8), 12), "b": ((16, 48), 6)})
    assert wanted_ranks(uneven) == {"a": 12, "b": 6}


def test_clipped_is_what_wanted_less_or_more_than_the_bounds_allow() -> None:
    assert clipped(clipping_plan()) == {"l.0.a": "rank_min", "l.0.c": "rank_max"}, "b and d want just the bounds"


def test_under_the_parameters_budget_every_rank_on_a_bound_counts() -> None:
    plan = clipping_plan(budget="parameters")
    assert clipped(plan) == {
        name: f"rank_{end}"
        for name, end in zip((m.name for m in plan.modules), ("min", "min", "max", "max"), strict=True)
    }


@pytest.mark.parametrize("budget", ["paper", "parameters"])
def test_rank_zero_is_not_called_clipped(budget: str) -> None:
    plan = make_plan({"a": ((8, 8), 0), "b": ((8, 8), 7)}, {"a": 0.0, "b": 1.0}, rank_min=0, budget=budget)
    assert "a" not in clipped(plan)


def test_a_matrix_narrower_than_the_bounds_is_clipped_to_its_width() -> None:
    plan = make_plan({"l.0.q": ((32, 32), 8), "score": ((2, 32), 2)}, rank_max=None)
    assert clipped(plan) == {"score": "rank_max"}
    assert "r_max unbounded, or to the width of a narrower layer: score" in render(rank_report(plan), width=120)


def test_clipped_names_are_a_handful_and_a_count() -> None:
    plan = llama(32, lambda layer, kind: 4, budget="parameters")
    text = " ".join(render(rank_report(plan), width=100).split())
    assert "224 of 224 layers on r_min 4: model.layers.0.self_attn.q_proj," in text
    assert "and 221 more" in text
    assert text.count("model.layers.") == 3


# JSON


def test_rank_data_holds_the_document_and_what_follows_from_it() -> None:
    plan = clipping_plan()
    data = rank_data(plan)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert Plan.model_validate(data) == plan
    assert data["parameters"] == 64 * (4 + 4 + 10 + 10)
    assert data["lora_parameters"] == 64 * 8 * 4
    assert data["ratio"] == pytest.approx(28 / 32)
    assert data["clipped"] == {"rank_min": ["l.0.a"], "rank_max": ["l.0.c"]}
    assert data["rank_zero"] == []
    assert [kind["kind"] for kind in data["kinds"]] == ["a", "b", "c", "d"]


def test_statistics_by_kind_add_up() -> None:
    plan = llama(8)
    kinds = {kind["kind"]: kind for kind in rank_data(plan)["kinds"]}
    ranks = [module.rank for module in plan.modules if module.name.endswith(".v_proj")]
    assert kinds["v_proj"] == {
        "kind": "v_proj",
        "layers": 8,
        "rank_min": min(ranks),
        "rank_mean": pytest.approx(sum(ranks) / 8),
        "rank_max": max(ranks),
        "parameters": 5120 * sum(ranks),
        "parameter_share": pytest.approx(5120 * sum(ranks) / plan.parameters),
        "lora_parameters": 5120 * 8 * 8,
        "importance_share": pytest.approx(1 / 7),
        "importance_share_mean": pytest.approx(1 / 56),
        "clipped_at_rank_min": 0,
        "clipped_at_rank_max": 0,
    }
    assert sum(kind["parameters"] for kind in kinds.values()) == plan.parameters
    assert sum(kind["parameter_share"] for kind in kinds.values()) == pytest.approx(1)
    assert sum(kind["importance_share"] for kind in kinds.values()) == pytest.approx(1)


# Picture


@pytest.fixture
def plot_ranks() -> Any:
    pytest.importorskip("matplotlib")
    from gora.report.plot import plot_ranks

    return plot_ranks


def test_png_is_a_picture_with_the_colours_of_the_ranks(plot_ranks: Any, tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "ranks.png"
    plot_ranks(llama(32, lambda layer, kind: 32 if kind == 2 else 4), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 1000
    yellow = (abs(pixels - (253, 231, 37)).max(axis=2) <= 2).sum()
    violet = (abs(pixels - (68, 1, 84)).max(axis=2) <= 2).sum()
    assert 4 < violet / yellow < 8, "one of seven rows is yellow"
    assert [child.name for child in tmp_path.iterdir()] == ["ranks.png"]


def test_svg_names_the_kinds_and_the_model_and_is_the_same_each_time(plot_ranks: Any, tmp_path: Path) -> None:
    names = {name: ((768, 768), 5) for name in t5_names()}
    plan = make_plan(names, model=ModelIdentity(name="a$b$c_d <&>", config="c", weights="w"))
    plot_ranks(plan, tmp_path / "one.svg")
    plot_ranks(plan, tmp_path / "two.SVG")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.SVG").read_bytes()
    root = ElementTree.parse(tmp_path / "one.svg").getroot()
    texts = ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(texts) >= {"SelfAttention.q", "EncDecAttention.o", "wi", "encoder", "decoder", "a$b$c_d <&>", "5"}
    assert any("0.62x LoRA at rank 8" in text for text in texts)


def test_numbers_are_left_out_of_cells_too_narrow_for_them(plot_ranks: Any, tmp_path: Path) -> None:
    def rank_texts(layers: int) -> int:
        plot_ranks(llama(layers, lambda layer, kind: 777), tmp_path / "p.svg")
        return (tmp_path / "p.svg").read_text().count(">777</text>")

    assert rank_texts(32) == 7 * 32 + 1, "one in each cell, one beside the word rank"
    assert rank_texts(126) == 1


@pytest.mark.parametrize("modules", [{"fc": ((8, 8), 0)}, {"fc": ((8, 8), 3), "l.0.q": ((8, 8), 0)}])
def test_small_and_empty_adapters_can_be_drawn(plot_ranks: Any, tmp_path: Path, modules: dict[str, Any]) -> None:
    plot_ranks(make_plan(modules, rank_min=0), tmp_path / "p.svg")
    assert "no adapter" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize("name", ["ranks.html", "ranks.pdf", "ranks"])
def test_another_suffix_is_refused_before_anything_is_written(plot_ranks: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.png or an \.svg"):
        plot_ranks(llama(1), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_layers_is_refused(plot_ranks: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layers"):
        plot_ranks(make_plan({}), tmp_path / "p.png")


def test_missing_matplotlib_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gora.report.plot import plot_ranks

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"gora-finetune\[plot\]"):
        plot_ranks(llama(1), tmp_path / "p.png")


def test_the_settings_of_matplotlib_neither_matter_nor_change(plot_ranks: Any, tmp_path: Path) -> None:
    import matplotlib

    plan = llama(2)
    plot_ranks(plan, tmp_path / "plain.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        plot_ranks(plan, tmp_path / "styled.svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()


def test_reports_need_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    import subprocess

    pytest.importorskip("matplotlib")
    code = (
        "import sys; from tests.report.test_report import llama, render; from pathlib import Path\n"
        "from gora.report.ranks import rank_report; from gora.report.plot import plot_ranks\n"
        "render(rank_report(llama(1)))\n"
        "assert not {'torch', 'matplotlib'} & sys.modules.keys()\n"
        f"plot_ranks(llama(1), Path({str(tmp_path / 'p.png')!r}))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
