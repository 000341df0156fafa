"""The page of `gora check`: problems first, then what the recipe does and takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_PARTS = ("weights", "sums", "adapters", "gradients", "optimizer", "activations", "logits", "buffers")


def check_page(problems: Sequence[str], notes: Sequence[str], facts: Mapping[str, Any]) -> RenderableType:
    """The page.

    Args:
        problems: what would stop the run.
        notes: what the user should know.
        facts: of `gora.stages.check.Checked`; a section may be missing.
    """
    return Group(*_messages(problems, notes), _facts(facts), *_memory(facts))


def _messages(problems: Sequence[str], notes: Sequence[str]) -> Iterator[RenderableType]:
    for problem in problems:
        yield Text(f"problem   {problem}", style="bold red")
    for note in notes:
        yield Text(f"note      {note}", style="yellow")
    if not problems:
        yield Text("No problem was found." if not notes else "Nothing would stop the run.", style="green")
    yield Text()


def _facts(facts: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=0)
    table.add_column(width=10, no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in _sections(facts):
        for number, line in enumerate(lines):
            table.add_row("" if number else name, Text(line))
    return table


def _sections(facts: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    if model := facts.get("model"):
        packed = f", {model['quantization']}" if model["quantization"] else ""
        yield (
            "model",
            [
                f"{model['name']}: {model['parameters']:,} parameters, {_size(model['weight_bytes'])}{packed} on "
                f"{model['device']}, attention {model['attention']}, computing in {model['precision']}"
            ],
        )
    if targets := facts.get("targets"):
        kinds = ", ".join(f"{kind} x{count}" for kind, count in targets["kinds"].items())
        yield (
            "targets",
            [
                f"{targets['layers']} layers: {kinds}",
                f"{targets['method']}: {targets['trainable']:,} trainable parameters, {targets['share']:.2%} of all",
            ],
        )
    if rows := facts.get("rows"):
        length = rows["length"]
        spread = (
            f"tokens of a row: {length['least']} to {length['most']}, mean {length['mean']:g}, half up to "
            f"{length['p50']}, 90 % up to {length['p90']}, 99 % up to {length['p99']}"
        )
        yield "rows", [rows["summary"], *([spread] if rows["unit"] == "tokens" else [])]
    if steps := facts.get("steps"):
        yield "steps", list(_steps(steps, facts["processes"]))
    if duration := facts.get("time"):
        pass_time = f"{_clock(duration['gradients'])} for the gradient pass, " if duration["gradients"] else ""
        yield (
            "time",
            [
                f"about {pass_time}{_clock(duration['training'])} for training "
                f"({1000 * duration['seconds_per_micro_batch']:.0f} ms for a micro-batch, measured on random weights)"
            ],
        )
    if disk := facts.get("disk"):
        written = ", ".join(f"{key} {_size(disk[key])}" for key in ("plan", "checkpoints", "adapter") if disk[key])
        more = ", ".join(
            f"{what} {_size(disk[key])}"
            for key, what in (("merged", "--merge"), ("gradients", "--keep-gradients"))
            if disk[key]
        )
        yield "disk", [f"{_size(disk['free'])} free; {written}; with {more}"]
    if folder := facts.get("folder"):
        yield "folder", [f"{folder['path']} ({folder['state']})"]
    yield "machine", list(_machine(facts["machine"]))
    if gpus := facts.get("gpus"):
        yield "GPUs", list(_gpus(gpus))


def _steps(steps: Mapping[str, Any], processes: int) -> Iterator[str]:
    shared = f" x {processes} processes" if processes > 1 else ""
    recomputing = ", recomputing activations" if steps["activation_checkpointing"] else ""
    yield (
        f"{steps['optimizer_steps']:,} optimizer steps of {steps['batch_size']} rows = {steps['micro_batch_size']} per "
        f"micro-batch x {steps['accumulation']} accumulation steps{shared}, {steps['warm_up']:,} of them warm-up"
        f"{recomputing}"
    )
    if steps["gradient_micro_batches"]:
        yield f"before: gradients of {steps['gradient_micro_batches']} x {steps['gradient_micro_batch_size']} rows"


def _machine(machine: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    host = machine["host"]
    yield f"{host['system']}, {host['cores']} cores, {_size(host['available'])} of {_size(host['memory'])} memory free"
    for number, gpu in enumerate(machine["gpus"]):
        bfloat16 = "" if gpu["bfloat16"] else ", no bfloat16"
        yield f"GPU {number}: {gpu['name']}, {_size(gpu['free'])} of {_size(gpu['memory'])} free{bfloat16}"
    if machine["gpus"]:
        yield f"driver {machine['driver']}, CUDA {machine['cuda']}, NCCL {machine['nccl']}"
    else:
        yield "no GPU"
    there = [f"{name} {number}" for name, number in machine["optional"].items() if number]
    missing = [name for name, number in machine["optional"].items() if not number]
    absent = f"not installed: {', '.join(missing)}" if missing else ""
    yield "; ".join(part for part in (", ".join(there), absent) if part)


def _gpus(gpus: Mapping[str, Any]) -> Iterator[str]:
    for copy in gpus["copies"]:
        rate = f"{copy['bytes_per_second'] / 1e9:.1f} GB/s"
        yield f"{copy['from']} to {copy['to']}: {rate}, {'right' if copy['right'] else 'WRONG'}"
    if reduced := gpus["all_reduce"]:
        rate = f"{reduced['bytes_per_second'] / 1e9:.1f} GB/s"
        yield f"all-reduce: {rate} on the bus, {'right' if reduced['right'] else 'WRONG'}"
    yield "products: " + ("the right ones on every GPU" if gpus["products"] else "WRONG")


def _memory(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    memory = facts.get("memory")
    if memory is None:
        return
    engines = {f"training, {name}": parts for name, parts in memory["engines"].items()}
    peaks = {f"{name}, this recipe": parts for name, parts in memory["peaks"].items()}
    shown = [part for part in _PARTS if any(parts[part] for parts in (*peaks.values(), *engines.values()))]
    table = Table("peak in GB", *shown, "total", "host", title="Memory of each device, by the estimate")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, parts in {**peaks, **engines}.items():
        table.add_row(name, *(_gigabytes(parts[key]) for key in (*shown, "total", "host")))
    yield table
    rows = "images" if memory["unit"] == "images" else f"rows of {memory['longest_row']} tokens"
    sizes = ", ".join(f"{size or 'none'} ({what})" for what, size in memory["largest_micro_batch"].items())
    yield Text(f"{_size(memory['limit'])} can be used; largest micro-batch of {rows} that fits: {sizes}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}" if size else ""


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
