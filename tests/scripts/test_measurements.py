"""Tables of measurements are those of their data, and the study of images looks for rates by itself."""

import argparse
import json
import statistics
import sys

import pytest

from gora.core.learning_rate import COMMON_RATES, rate_under_new_head
from gora.recipe import load_recipe
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "vision"))
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import distributed_table
import methods
import parity
import study
from vision_search import AUTO, Results

DATA = ROOT / "docs" / "data"
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
RATES = (distributed_table.whole_rate, distributed_table.late_rate)
TRIED = (0.0003, 0.001, 0.003)


def data(name):
    return json.loads((DATA / name).read_text())


def test_the_table_of_images_is_that_of_the_runs():
    rows = study.table(Results(DATA / "images-h200.json"), argparse.Namespace(methods=list(study.METHODS)))
    page = (ROOT / "docs" / "results-images.md").read_text()
    for row in rows.splitlines()[2:]:
        assert row in page


def test_the_accuracies_of_the_preset_at_other_rates_are_those_of_the_runs():
    page = (ROOT / "docs" / "results-images.md").read_text()
    for title, kind in (("five other classes", "cifar"), ("digits", "digits")):
        runs = [run for run in data("images-h200.json")["runs"] if (run["set"], run["method"]) == (kind, AUTO)]
        tried = sorted((run["rate"], 100 * run["accuracy"]) for run in runs if run["rate"])
        assert f"| {title} | {' | '.join(f'{accuracy:.1f}' for _, accuracy in tried)} |" in page
        assert f"| rate | {' | '.join(f'{rate:g}' for rate, _ in tried)} |" in page


def test_the_page_says_what_the_rule_that_ships_takes_for_images():
    """From the limits of the runs that took a fifteenth of them."""
    page = (ROOT / "docs" / "results-images.md").read_text().replace("\n", " ")
    runs = [run for run in data("images-h200.json")["runs"] if run["method"] == AUTO and not run["rate"]]
    found = [run["rate_found"] for run in runs]
    assert f"over 15: rates of {min(found):g} to {max(found):g}." in page
    assert [rate_under_new_head(15 * rate, COMMON_RATES["image-classification"], 1.0) for rate in found] == [
        pytest.approx(0.001, rel=0.01)
    ] * 6
    assert "with the limits of those runs 0.001 in all six" in page


def test_the_table_of_engines_on_two_gpus_is_that_of_the_runs():
    rows = data("distributed-two-h200.json")["rows"]
    alone = rows[0]
    assert alone["gpus"] == 1
    for row in rows:
        gpus = row["gpus"]
        cells = [
            f"`{row['engine_asked']}`",
            str(gpus),
            f"{row['gradient_rate'] / gpus:,.0f}",
            f"{row['gradient_rate'] / alone['gradient_rate']:.2f}",
            f"{row['late_rate'] / gpus:,.0f}",
            f"{row['late_rate'] / alone['late_rate']:.2f}",
            ", ".join(f"{stage['gpu'] / 1e9:.1f}" for stage in row["memory"]),
        ]
        assert f"| {' | '.join(cells)} |" in PERFORMANCE


def test_the_table_of_engines_on_four_gpus_is_that_of_the_runs():
    rows = data("distributed-8b-four-h200.json")["rows"]

    def of(engine, targets, gpus):
        return [row for row in rows if (row["engine_asked"], row["targets"], row["gpus"]) == (engine, targets, gpus)]

    def passes(row):
        return row["micro_batches"] / row["gradient_seconds"]

    for row in rows:
        gpus, alone = row["gpus"], of("ddp", row["targets"], 1)
        assert len(alone) == 2
        (ddp,) = of("ddp", row["targets"], 4)
        cells = [
            row["targets"],
            f"`{row['engine_asked']}`",
            str(gpus),
            str(row["micro_batches"]),
            f"{row['gradient_rate'] / gpus:,.0f}",
            f"{2 * passes(row) / sum(map(passes, alone)):.2f}",
            f"{row['late_rate'] / gpus:,.0f}",
            f"{2 * row['late_rate'] / sum(one['late_rate'] for one in alone):.2f}",
            f"{ddp['late_rate'] / row['late_rate']:.2f}" if gpus == 4 else "",
            ", ".join(f"{stage['gpu'] / 1e9:.1f}" for stage in row["memory"]),
        ]
        assert f"| {' | '.join(cells)} |" in PERFORMANCE
    (alone, _), compared = of("ddp", "attention", 1), {"fsdp": 6, "zero3": 6, "zero2-offload": 3}
    for engine, steps in compared.items():
        (row,) = of(engine, "attention", 4)
        assert row["losses"][:steps] == pytest.approx(alone["losses"][:steps], rel=4e-4)


def test_the_table_of_equal_work_on_one_and_four_gpus_is_that_of_the_runs():
    rows = data("distributed-8b-equal-work-h200.json")["rows"]
    alone = [row for row in rows if row["gpus"] == 1]
    four = rows[-1]
    for row in rows:
        gpus = row["gpus"]
        assert row["micro_batches"] == 64 * gpus
        speed_ups = [distributed_table.speed_up(rate, row, alone) for rate in RATES]
        cells = [
            row["targets"],
            f"`{row['engine_asked']}`",
            str(gpus),
            str(row["micro_batches"]),
            f"{row['gradient_seconds']:.1f}",
            f"{row['gradient_rate'] / gpus:,.0f}",
            f"{speed_ups[0]:.2f}",
            f"{row['late_rate'] / gpus:,.0f}",
            f"{speed_ups[1]:.2f}",
            ", ".join(f"{stage['gpu'] / 1e9:.1f}" for stage in row["memory"]),
        ]
        assert f"| {' | '.join(cells)} |" in PERFORMANCE
    assert speed_ups[0] > 3.9
    assert speed_ups[1] > 3.7

    def milliseconds(of):
        found = [1000 * part["rounds"] / 63 for row in of for part in row["parts"]]
        return f"{min(found):.0f} to {max(found):.0f} ms"

    assert f"one takes {milliseconds([four])} on each of four GPUs and {milliseconds(alone)} on one" in PERFORMANCE
    signal = [row["parts"][0]["signal"] for row in alone]
    assert (
        f"takes {four['parts'][0]['signal']:.2f} s, and {min(signal):.2f} to {max(signal):.2f} s on one" in PERFORMANCE
    )
    assert f"takes {four['parts'][0]['reduced']:.2f} s (27.9 GB)" in PERFORMANCE
    shared = four["gradient_seconds"] - 48 / 63 * four["parts"][0]["rounds"]
    single = statistics.mean(row["gradient_seconds"] for row in alone)
    assert f"would be {single / shared:.1f} times as fast as on one" in PERFORMANCE
    waited = [max(steps[len(steps) // 2 :]) for steps in four["waited"]]
    assert f"Of a step of {64 * 1024 / four['late_rate']:.2f} s" in PERFORMANCE
    assert f"wait up to {max(waited):.2f} s for the slowest" in PERFORMANCE
    assert min(waited) < 0.001


def test_what_is_said_of_a_70b_shape_is_what_was_measured():
    four, two = data("large-four-h200.json"), data("large-h200.json")
    gradients = four["gradients"]
    said = f"took the gradient pass {gradients['seconds']:.2f} s,\n  {gradients['tokens_per_second']:,.0f} tokens/s"
    assert said in PERFORMANCE
    assert f"{gradients['sums']['device_bytes'] / 1e9:.1f} GB of sums" in PERFORMANCE
    assert f"{max(gradients['allocated']) / 1e9:.1f} GB at most on each GPU" in PERFORMANCE
    for found in (four, two):
        training = found["training"]
        seconds, rate = training["step_seconds"], training["tokens_per_second_per_gpu"]
        assert rate * statistics.median(seconds) == pytest.approx(2 * 1024)
        said = f"took {min(seconds):.2f} to {max(seconds):.2f} s"
        assert said in PERFORMANCE
        assert f"{rate:.0f} tokens/s per GPU, with {max(training['allocated']) / 1e9:.1f} GB at most" in PERFORMANCE
    rates, memory = zip(
        *((each["training"]["tokens_per_second_per_gpu"], each["training"]["allocated"][0]) for each in (four, two)),
        strict=True,
    )
    assert f"have {2 * rates[0] / rates[1]:.2f} times the tokens per second" in PERFORMANCE
    assert f"need {memory[0] / memory[1]:.2f} of the memory" in PERFORMANCE


def test_the_table_of_waiting_for_images_is_that_of_the_runs():
    page, found = (ROOT / "docs" / "results-images.md").read_text(), data("images-waiting-h200.json")
    for title, precision in (("float32", "fp32"), ("bfloat16", "bf16")):
        row = found[precision]
        cells = [f"{row['images_per_second']:.0f}", f"{row['waiting']:.2%}", f"{row['most_waiting']:.2%}"]
        assert f"| {title} | {' | '.join(cells).replace('%', ' %')} |" in page
    assert f"delivered {found['alone']['images_per_second']:,.0f} images/s" in page


def test_the_table_of_memory_is_that_of_the_runs():
    rows = data("memory-h200.json")["rows"]
    for row in rows:
        share = row["error_share"]
        off = "0.0 %" if abs(share) < 5e-4 else f"{100 * share:+.1f} %"
        measured, estimate = f"{row['measured'] / 1e9:.2f}", f"{row['estimate']['total'] / 1e9:.2f}"
        assert f"| {measured} | {estimate} | {off} | {row['reserved'] / row['measured']:.2f} |" in PERFORMANCE
    assert max(abs(row["error_share"]) for row in rows) < 0.019


def whole_run(way, found):
    """Seconds of a run with its precompute."""
    return way.precompute + found["whole"] * statistics.median(way.seconds[methods.WARM_UP :])


def of_lora(ways, name):
    """Steps of a way over LoRA's of the same round: the median."""
    steps, lora = (ways[way].seconds[methods.WARM_UP :] for way in (name, "lora"))
    return statistics.median(mine / other for mine, other in zip(steps, lora, strict=False))


def test_the_table_of_the_time_of_methods_is_that_of_the_steps():
    found = data("training-table8-h200.json")
    ways = {way: methods.Measured(**facts) for way, facts in found["ways"].items()}
    for line in methods.table(ways, found["whole"]).splitlines():
        assert line in PERFORMANCE
    lora = ways["lora"].seconds[methods.WARM_UP :]
    times = whole_run(ways["gora"], found) / whole_run(ways["lora"], found)
    assert times < 1.01
    assert f"GoRA takes {times:.4f} times LoRA's time with its precompute counted" in PERFORMANCE
    share = ways["gora"].precompute / (found["whole"] * statistics.median(lora))
    assert f"The precompute is {share:.2%} of a run of LoRA's".replace("%", " %") in PERFORMANCE
    assert f"its micro-batches ran at {found['pass']['tokens_per_second']:,} tokens/s" in PERFORMANCE
    assert f"LoRA's own steps are from {min(lora):.3f} to {max(lora):.3f} s" in PERFORMANCE
    (low, _, high), (_, power, _) = (found["gpu_during_steps"][name] for name in ("clock_mhz", "power_w"))
    assert f"({power:.0f} of 700 W), and its clock moves between {low:,.0f} and {high:,.0f} MHz" in PERFORMANCE


def test_what_is_said_of_the_earlier_time_of_methods_is_that_of_its_steps():
    found = data("training-table8-h200.json")
    ways = {way: methods.Measured(**facts) for way, facts in found["earlier"]["ways"].items()}
    times = {way: whole_run(ways[way], found) / whole_run(ways["lora"], found) for way in ways}
    assert f"(`earlier` in the file), it was {times['gora']:.4f}:" in PERFORMANCE
    steps = [of_lora(ways, name) for name in ("gora", methods.MIXED)]
    assert "took {:.4f} times LoRA's there, and those of a LoRA with mixed ranks {:.4f};".format(*steps) in PERFORMANCE
    assert f"the precompute took {ways['gora'].precompute:.1f} s" in PERFORMANCE
    adalora = of_lora(ways, "adalora"), times["adalora"]
    assert "{:.4f} times LoRA's steps and {:.4f} times its whole run".format(*adalora) in PERFORMANCE


def passes_in(results, padded):
    """Cells of a table of the gradient pass, a row for each way."""
    for row in results:
        first, second = row["rates"]
        cells = [f"{first:,.0f}", f"{second:,.0f}", f"{second / padded['rates'][1]:.2f}"]
        yield [*cells, f"{1000 * row['seconds'][1] / row['micro_batches']:.0f}", f"{row['memory'] / 1e9:.1f} GB"]


def test_the_tables_of_the_gradient_pass_on_mixed_lengths_are_those_of_the_passes():
    found = data("gradient-rows-h200.json")
    rows = {row["way"]: row for row in found["results"]}
    padded, *_, alone, together = rows.values()
    math = {row["way"]: row for row in found["math"]["results"]}
    small = {row["way"]: row for row in found["small"]["results"]}
    each_alone = small["end to end, each alone, unrecorded"]
    for results, first in ((rows, padded), (math, math["padded, unrecorded"]), (small, each_alone)):
        for cells in passes_in(results.values(), first):
            assert f" | {' | '.join(cells)} |" in PERFORMANCE
    assert together["seconds"][1] / alone["seconds"][1] == pytest.approx(1.18, abs=5e-3)
    assert rows["padded, kernels, unrecorded"]["apart"] == pytest.approx(alone["apart"], rel=1e-3)
    assert (
        f"differ by {max(row['apart'] for row in small.values()):.1%} of their norm".replace("%", " %") in PERFORMANCE
    )
    assert f"recorded micro-batches have {each_alone['padding']:.0%} padding".replace("%", " %") in PERFORMANCE
    assert "by 12.39 %" in PERFORMANCE
    assert alone["apart"] == pytest.approx(0.1239, abs=5e-5)


def test_the_trial_that_did_not_count_took_what_sharing_passes_lost():
    math = {row["way"]: row for row in data("gradient-rows-h200.json")["math"]["results"]}
    rates = [math[way]["rates"][1] for way in ("end to end", "end to end, each alone, unrecorded")]
    tokens, tried = 36172, 3823  # of 20 micro-batches, and of the first two, by the seed
    shared, alone = (tokens / rate for rate in rates)
    assert f"took {shared - alone:.2f} s longer of {shared:.2f}," in PERFORMANCE
    passes = 2 * tried / rates[1]
    assert f"{tried:,} tokens, take {passes:.2f} s by themselves" in PERFORMANCE
    forward = (4024 + 2044) / 3 / rates[1]  # the first micro-batch, padded and not
    without = tokens / (shared - passes - forward)
    assert without == pytest.approx(15_300, rel=0.005)
    assert "shared passes would have had about 15,300 tokens/s, calculated" in PERFORMANCE
    assert f"it is about {without / rates[1] - 1:.0%} by the calculation".replace("%", " %") in PERFORMANCE


def test_what_the_gradient_pass_gains_is_compared_with_what_training_gains_over():
    """Both over PEFT with the Trainer on the same lengths."""
    trained = [row for run in data("training-h200.json")["runs"] for row in run["results"]]

    def rate(setting, way="PEFT + Trainer"):
        return next(
            row["rate"] for row in trained if (row["shape"], row["setting"], row["way"]) == ("8b", setting, way)
        )

    found = data("gradient-rows-h200.json")
    math = {row["way"]: row["rates"][1] for row in found["math"]["results"]}
    instruction = {row["way"]: row["rates"][1] for row in found["results"]}
    alone, padded = math["end to end, each alone, unrecorded"], math["padded, unrecorded"]
    gains = (
        alone / rate("attention, math"),
        instruction["end to end, 16 rows, unrecorded"] / rate("attention, instruction"),
    )
    assert f"the pass gains {gains[0]:.2f}\n" in PERFORMANCE
    assert f"and {gains[1]:.2f} (the instruction set's, 16 rows)" in PERFORMANCE
    assert f"It has {padded / rate('attention, math'):.1f} times the tokens per second of PEFT's" in PERFORMANCE
    full = {
        row["way"]: row["batch"] * row["length"] / row["flowing"]
        for row in data("precompute-h200.json")["rows"]
        if (row["targets"], row.get("batch"), row.get("length")) == ("attention", 8, 1024) and "flowing" in row
    }
    assert f"one of rows of one length: {full['gora']:,.0f} tokens/s at 8x1024" in PERFORMANCE
    assert f"plain accumulation has {full['plain']:,.0f} and PEFT {full['lora']:,.0f}" in PERFORMANCE
    assert alone >= full["gora"]
    share = next(row["padding"] for row in found["math"]["results"])
    assert f"leaving out {share:.0%} padding\n  can give, {1 / (1 - share):.2f} times".replace("%", " %") in PERFORMANCE
    # A token's operations: training's tell how many weights it meets, and the targets' gradients are two for each.
    width, heads = 4096, 1024
    targets = 32 * 2 * (width * width + width * heads)
    row = next(row for row in trained if row["way"] == "gora, kernels liger" and row["setting"] == "attention, math")
    operations = row["tflops"] * 1e12 / row["rate"]
    assert f"{2 * targets / (operations + 2 * targets):.0%} of a token's".replace("%", " %") in PERFORMANCE


def test_the_table_of_whole_sets_is_that_of_the_runs():
    rows = data("training-full-sets-h200.json")["results"]
    rates = {(row["setting"], row["way"]): row["rate"] for row in rows}
    for row in rows:
        peft, trl = (rates[row["setting"], way] for way in ("PEFT + Trainer", "TRL, packed"))
        cells = [f"{row['rate']:,.0f}", f"{row['rate'] / peft:.2f}", f"{row['rate'] / trl:.2f}"]
        assert f" | {' | '.join(cells)} | {row['memory'] / 1e9:.1f} GB |" in PERFORMANCE


def of_run(name, run, setting, way, shape="8b"):
    rows = data(f"training-{name}.json")["runs"][run]["results"]
    return next(row for row in rows if (row["shape"], row["setting"], row["way"]) == (shape, setting, way))


PLAIN, LIGER = "PEFT + Trainer", "gora, kernels liger"
# Run of the file, setting and way of each row of the table, and the words that name it.
OF_8B = [
    (0, "attention, 4 x 1024", "gora", "8B, attention, 4 x 1024"),
    (0, "attention, 1 x 4096", "gora", "8B, attention, 1 x 4096"),
    (4, "all-linear, 4 x 1024", LIGER, "8B, all-linear, 4 x 1024 (packed)"),
    (3, "attention, math", LIGER, "8B, attention, math (38 % padding in PEFT's)"),
    (1, "all-linear, math", "gora", "8B, all-linear, math"),
    (1, "attention, instruction", "gora", "8B, attention, instruction (56 %)"),
]


def test_the_first_table_of_training_is_that_of_the_runs():
    peak = data("precompute-h200.json")["rates"]["flops"] / 1e12
    lines = PERFORMANCE.split(f"TFLOP/s, of {peak:.0f} |")[1].split("\n\n")[0].splitlines()
    for run, setting, way, words in OF_8B:
        plain, mine = (of_run("h200", run, setting, each) for each in (PLAIN, way))
        (line,) = (line for line in lines if line.startswith(f"| {words} | "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{plain['rate']:,.0f}"
        assert cells[3:5] == [f"{mine['rate']:,.0f}", f"{mine['rate'] / plain['rate']:.2f}"]
        assert cells[-2] == f"{mine['tflops']:.0f}, {100 * mine['tflops'] / peak:.0f} %"
        assert cells[-1] == f"{plain['memory'] / 1e9:.1f}, {mine['memory'] / 1e9:.1f} GB"


def test_aims_of_training_are_met_as_far_as_the_page_says():
    table = PERFORMANCE.split("## Training")[1].split("Not measured")[0]
    long, bare = (of_run("h200", 0, "attention, 1 x 4096", way)["rate"] for way in ("gora", "PEFT, bare passes"))
    assert f"{long:,.0f}, which is {1 - long / 16_000:.1%} less; {long / bare:.2f} times".replace("%", " %") in table
    gains = {
        targets: of_run("h200", run, f"{targets}, 4 x 1024", way)["rate"]
        / of_run("h200", run, f"{targets}, 4 x 1024", PLAIN)["rate"]
        for targets, run, way in (("attention", 0, "gora"), ("all-linear", 4, LIGER))
    }
    for run, setting, way, _ in OF_8B[3:]:
        plain, mine = (of_run("h200", run, setting, each) for each in (PLAIN, way))
        aim = 0.95 * gains[setting.split(",")[0]] / (1 - plain["padding"])
        assert mine["rate"] / plain["rate"] > aim
        assert f"{setting}: {aim:.2f} | {mine['rate'] / plain['rate']:.2f} |" in table
    shares = [
        of_run("h200", run, setting, way)["memory"] / of_run("h200", run, setting, PLAIN)["memory"]
        for run, setting, way, _ in OF_8B
    ]
    assert f"{min(shares):.2f} to {max(shares):.2f} of it, 8B" in table
    small = [
        of_run("h200", 2, f"{targets}, math", "gora, one micro-batch", "135m")["memory"]
        / of_run("h200", 2, f"{targets}, math", PLAIN, "135m")["memory"]
        for targets in ("attention", "all-linear")
    ]
    assert "one micro-batch {:.2f} and {:.2f} times it".format(*small) in table
    mixed = [
        of_run(name, run, setting, f"{way}, mixed ranks", shape)["rate"]
        / of_run(name, run, setting, way, shape)["rate"]
        for name, run, setting, way, shape in (
            ("recorded-h200", 2, "attention, 4 x 1024", "gora", "8b"),
            ("recorded-h200", 1, "attention, 4 x 1024", "gora, packed", "8b"),
            ("recorded-h200", 0, "all-linear, math", "gora", "135m"),
            ("later-h200", 1, "all-linear, 4 x 1024", "gora", "8b"),
        )
    ]
    said = (
        "{:+.1f} %; end to end and recorded {:+.1f} %; 135M, all-linear, recorded {:+.1f} %; 8B, all-linear {:+.1f} %"
    )
    assert said.format(*(100 * (gain - 1) for gain in mixed)) in table


def test_reserved_memory_is_told_where_it_is_above_peft_s_too():
    fixed = [
        of_run("recorded-h200", run, "attention, 4 x 1024", way)["reserved"]
        / of_run("recorded-h200", run, "attention, 4 x 1024", PLAIN)["reserved"]
        for run, way in (
            (2, "gora"),
            (2, "gora, mixed ranks"),
            (1, "gora"),
            (1, "gora, packed"),
            (1, "gora, packed, mixed ranks"),
        )
    ]
    assert f"{min(fixed):.2f} to {max(fixed):.2f} of it, 8B at 4 x 1024" in PERFORMANCE
    rows = data("training-full-sets-h200.json")["results"]
    peft, trl, mine = (
        next(row["reserved"] / 1e9 for row in rows if (row["setting"], row["way"]) == ("attention, math", way))
        for way in (PLAIN, "TRL, packed", "gora")
    )
    assert mine > peft
    assert f"{mine:.1f} GB reserved on the math rows, PEFT {peft:.1f} GB and TRL {trl:.1f} GB" in PERFORMANCE
    assert f"{mine:.1f} GB, PEFT {peft:.1f} GB" in PERFORMANCE
    failed, plain = (of_run("later-h200", 1, "all-linear, 4 x 1024", way)["reserved"] / 1e9 for way in ("gora", PLAIN))
    assert f"had {failed:.1f} GB reserved, PEFT {plain:.1f} GB" in PERFORMANCE


def test_gains_across_two_runs_and_of_liger_alone_are_those_of_the_runs():
    mine = of_run("h200", 1, "attention, instruction", "gora")["rate"]
    rows = data("training-full-sets-h200.json")["results"]
    trl = next(row["rate"] for row in rows if (row["setting"], row["way"]) == ("attention, instruction", "TRL, packed"))
    assert f"{mine / trl:.2f} times TRL's {trl:,.0f}: two runs" in PERFORMANCE
    plain, liger = (of_run("h200", 6, "attention, 4 x 1024", way) for way in (PLAIN, f"{PLAIN} + Liger"))
    said = f"{liger['rate']:,.0f} tokens/s in {liger['memory'] / 1e9:.1f} GB, {liger['rate'] / plain['rate']:.2f} times"
    assert f"{said} the Trainer without ({plain['rate']:,.0f}, the last run)" in PERFORMANCE


def test_the_table_of_rows_beside_trl_is_that_of_the_starts():
    found = data("rows-trl.json")
    for kind in ("short", "math"):
        ways = {way: starts[0] for way, starts in found[kind]["compared"].items()}
        mine = ways["gora"]
        for way, words in (("gora", "gora"), ("datasets.map", "`datasets.map`"), ("trl", "TRL")):
            both = [
                (mine[unit] / ways[way][unit], f"{ways[way][unit]:.0f}") for unit in ("seconds", "processor_seconds")
            ]
            cells = [words, *(said for _, said in both)]
            cells += [f"{share:.2f}" for share, _ in both] if way != "gora" else [""]
            assert f"| {' | '.join(cells)} |".replace("  ", " ") in PERFORMANCE
    assert f"took {data('rows-whole.json')['short']['cold']['seconds']:.0f} s and" in PERFORMANCE


@pytest.mark.parametrize(("name", "where"), [("h200", "one H200"), ("cpu", "a CPU")])
def test_the_curves_of_the_same_training_are_as_far_apart_as_the_page_says(name, where):
    runs = data(f"training-parity-{name}.json")["runs"]
    cells = [f"{where} ([figures](data/training-parity-{name}.json))", str(len(runs["float32"]["losses"]))]
    for way in ("bfloat16", "fast"):
        found = parity.apart(runs[way], runs["float32"], 20)
        cells.append(f"{100 * found['largest']:.2f} %, {100 * found['mean']:.2f} %")
        assert runs[way]["ranks"] == runs["float32"]["ranks"]
        assert len(runs[way]["losses"]) == len(runs["float32"]["losses"])
    cells.append(", ".join(f"{runs[way]['eval']:.4f}" for way in parity.WAYS))
    assert f"| {' | '.join(cells)} |" in PERFORMANCE


def test_the_comparison_of_trainings_asks_for_as_many_epochs_as_its_steps_need():
    settings = parity.settings_of(argparse.Namespace(steps=200, set=[]))
    train = load_recipe("quickstart", settings).recipe.train
    assert train.max_steps == 200
    assert train.epochs >= 200  # an epoch may have one step


def test_seconds_of_a_checkpoint_are_those_of_the_saves():
    found = data("saving.json")
    for row in found["rows"]:
        seconds = statistics.median(row["seconds"])
        assert f"{seconds:.2f} s" in PERFORMANCE
        assert f"{row['bytes'] / 1e6:.0f} MB" in PERFORMANCE
        assert f"{100 * seconds / found['interval']:.2f} %" in PERFORMANCE
        assert seconds / found["interval"] < 0.01


def ran(results, losses, seed=0):
    for rate, loss in losses.items():
        results.content["runs"].append(
            {"set": "cifar", "method": "lora", "rate": rate, "seed": seed, "loss": loss, "accuracy": 0.5}
        )


@pytest.mark.parametrize(
    ("losses", "more"),
    [((3.0, 2.0, 1.0), (0.01, 0)), ((1.0, 2.0, 3.0), (0.0001, 0)), ((2.0, 1.0, None), (0.001, 1))],
    ids=["upwards", "downwards", "found"],
)
def test_rates_are_looked_for_until_the_best_lies_between_others(tmp_path, losses, more):
    given, results = argparse.Namespace(rates=TRIED, seeds=2, around=[]), Results(tmp_path / "results.json")
    assert results.next("cifar", "lora", given) == [("cifar", "lora", rate, 0) for rate in TRIED]
    ran(results, dict(zip(TRIED, losses, strict=True)))
    assert results.next("cifar", "lora", given)[0] == ("cifar", "lora", *more)
    ran(results, {0.001: 1.0}, seed=1)
    if more[1]:
        assert results.next("cifar", "lora", given) == [("cifar", "lora", 0.001, 2)]


def test_the_preset_is_run_on_every_seed_and_at_no_rate_of_the_study(tmp_path):
    given, results = argparse.Namespace(rates=TRIED, seeds=2, around=[]), Results(tmp_path / "results.json")
    assert results.next("cifar", AUTO, given) == [("cifar", AUTO, 0.0, 1), ("cifar", AUTO, 0.0, 2)]
