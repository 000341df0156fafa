"""Collected gradients against autograd's own, over model families, devices and every odd use of a weight."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from gora import manifest, mean_gradients
from gora.errors import GoraError, InputError
from gora.gradients.attach import Attachment
from gora.gradients.buffered import ENOUGH_TOKENS, BufferedSums, buffered_bytes
from gora.gradients.checkpoint import NoCheckpoint, PassCheckpoint
from gora.gradients.collect import Collection, Pace
from gora.gradients.host import staging_bytes
from gora.gradients.losses import Losses
from gora.gradients.placement import Operands, place, refuse_what_cannot_fit, split, sum_bytes
from gora.gradients.replay import Recorder, Replay
from gora.gradients.sharded import reduce_to_owners
from gora.gradients.sums import DeviceSums, SplitSums
from gora.gradients.taps import tapped
from gora.models.checkpointing import recomputing_activations
from gora.models.targets import as_out_in, find_targets, weight_shape

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PLACES = [
    ("cpu", "device"),
    *(("cuda", where) for where in ("device", "host", "split", "held") if torch.cuda.is_available()),
]


def text_batches(count, labels_from=0, rows=3, length=14):
    """Padded micro-batches whose numbers of supervised tokens differ."""
    generator = torch.Generator().manual_seed(7)
    for index in range(count):
        ids = torch.randint(3, 97, (rows, length), generator=generator)
        labels = ids.clone()
        labels[:, : 2 + index % 5] = -100
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        labels[0, 9:] = -100
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels[:, labels_from:].contiguous()}


def image_batches(count):
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        pixels = torch.randn(3, 3, 16, 16, generator=generator)
        yield {"pixel_values": pixels, "labels": torch.randint(0, 3, (3,), generator=generator)}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=97, n_positions=32))


def bert():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForMaskedLM(BertConfig(vocab_size=97, max_position_embeddings=32, **sizes))


def vit():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes))


FAMILIES = {"gpt2": gpt2, "bert": bert, "vit": vit}


def family(name, request):
    torch.manual_seed(0)
    model = FAMILIES[name]() if name in FAMILIES else request.getfixturevalue(name)
    batches = list(image_batches(4) if name == "vit" else text_batches(4, labels_from=4 if name == "t5" else 0))
    return model.eval().requires_grad_(False), batches


def loss_of(model):
    model.config.use_cache = False
    return lambda batch: model(**batch).loss


def autograd_mean(model, targets, batches):
    """Mean over the micro-batches of torch.autograd.grad in float64, as (out, in)."""
    reference = {name: module for name, module in model.named_modules() if name in targets}
    weights = [module.weight for module in reference.values()]
    totals = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    model.config.use_cache = False
    for batch in batches:
        found = torch.autograd.grad(model(**batch).loss, weights, allow_unused=True)
        for total, gradient in zip(totals, found, strict=True):
            total += 0 if gradient is None else gradient
    for weight in weights:
        weight.requires_grad_(False)
    pairs = zip(reference.items(), totals, strict=True)
    return {name: as_out_in(module, total) / len(batches) for (name, module), total in pairs}


def make_sums(attachment, targets, where="device", device="cpu"):
    shapes = {attachment.keys[name]: weight_shape(module) for name, module in targets.items()}
    device = torch.device(device)
    if where == "device":
        return DeviceSums(shapes, device)
    from gora.gradients.host import HostSums

    if where == "host":
        return HostSums(shapes, device)
    if where == "held":
        return BufferedSums(HostSums(shapes, device), 3)
    half = dict(list(shapes.items())[::2])
    rest = {key: shape for key, shape in shapes.items() if key not in half}
    return SplitSums(DeviceSums(half, device), HostSums(rest, device))


def collect(model, targets, batches, where="device", device="cpu", loss=None, **more):
    """Mean gradients by name, and how the collection went."""
    attachment = Attachment(model, targets)
    sums = make_sums(attachment, targets, where, device)
    run = Collection(
        attachment=attachment,
        sums=sums,
        batch_of=batches.__getitem__,
        loss_of=loss or loss_of(model),
        pace=Pace.alone(len(batches)),
        **{"checkpoint": NoCheckpoint(), **more},
    )
    progress = run.run()
    means = {name: sums.read(attachment.keys[name]).double().cpu() / progress.counted for name in targets}
    return means, progress


def assert_equal(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, mean in expected.items():
        mean = mean.cpu()
        assert mean.norm() > 0, name
        assert (found[name] - mean).norm() <= tolerance * mean.norm(), name


@pytest.mark.parametrize(("device", "where"), PLACES)
@pytest.mark.parametrize("name", ["llama", "t5", "gpt2", "bert", "vit"])
def test_every_target_s_gradient_equals_float64_autograd(name, device, where, request):
    model, batches = family(name, request)
    targets = find_targets(model, "all-linear")
    expected = autograd_mean(model.double(), targets, [_double(batch) for batch in batches])
    model.float().to(device)
    moved = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    found, progress = collect(model, targets, moved, where, device)
    assert progress.counted == len(batches)
    assert_equal(found, expected, 1e-6)


def _double(batch):
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_operands_are_summed_in_float32(device, request):
    """Against float64 products of the very same operands: what is left is the order of float32 sums."""
    model, batches = family("llama", request)
    model.to(device, torch.bfloat16)
    targets = find_targets(model, "all-linear")
    exact = {name: torch.zeros(weight_shape(module), dtype=torch.float64) for name, module in targets.items()}

    class Exact:
        def add(self, key, gradient, inputs):
            flat = (side.reshape(-1, side.shape[-1]).double().cpu() for side in (gradient, inputs))
            left, right = flat
            exact[key] += left.T @ right / len(batches)

    attachment = Attachment(model, targets)
    attachment.receiver = Exact()
    moved = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    with attachment.attached():
        for batch in moved:
            loss_of(model)(batch).backward()
    found, _ = collect(model, targets, moved, device=device)
    assert_equal(found, exact, 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [64, 1024])
def test_a_layer_with_bfloat16_inputs_is_within_two_thousandths_of_float64_autograd(device, tokens):
    """Weight and inputs are the same bfloat16 numbers on both sides; the layer's own output is rounded to bfloat16."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 64, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)
    inputs = torch.randn(tokens, 96, device=device, dtype=torch.bfloat16)
    wanted = torch.randn(tokens, 64, device=device).double()

    def loss(output):
        return (output.double() - wanted).square().mean()

    sums = DeviceSums({"layer": (64, 96)}, torch.device(device))
    with tapped({"layer": layer}, lambda name: lambda gradient, given: sums.add(name, gradient, given)):
        loss(layer(inputs)).backward()
    exact = layer.weight.double().requires_grad_(True)
    (expected,) = torch.autograd.grad(loss(inputs.double() @ exact.T), exact)
    error = (sums.read("layer").double() - expected).norm() / expected.norm()
    assert 0 < error < 2e-3


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_gives_what_autograd_gives_under_autocast(device, request):
    model, batches = family("llama", request)
    model.to(device)
    batches = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    targets = find_targets(model, "all-linear")

    def loss(batch):
        with torch.autocast(device, torch.bfloat16):
            return model(**batch).loss

    found, _ = collect(model, targets, batches, device=device, loss=loss)
    weights = [module.weight.requires_grad_(True) for module in targets.values()]
    totals = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    for batch in batches:
        for total, gradient in zip(totals, torch.autograd.grad(loss(batch), weights), strict=True):
            total += gradient / len(batches)
    # autograd rounds each micro-batch's gradient to bfloat16; the collector does not.
    assert_equal(found, dict(zip(targets, totals, strict=True)), 4e-3)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_activation_checkpointing_changes_nothing(name, reentrant, request):
    model, batches = family(name, request)
    targets = find_targets(model, "all-linear")
    expected, _ = collect(model, targets, batches)
    if reentrant:
        model.gradient_checkpointing_enable({"use_reentrant": True})
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True
        found, _ = collect(model, targets, batches)
    else:
        with recomputing_activations(model, True):
            found, _ = collect(model, targets, batches)
    assert_equal(found, expected, 1e-6)


def test_packed_rows_give_the_gradients_of_the_rows_apart(llama):
    llama.requires_grad_(False)
    targets = find_targets(llama, "all-linear")
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 97, (1, length), generator=generator) for length in (5, 9, 7)]
    labels = [torch.cat([torch.full((1, 1), -100), row[:, 1:]], dim=1) for row in rows]
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    packed = {"input_ids": torch.cat(rows, 1), "labels": torch.cat(labels, 1), "position_ids": positions}
    found, _ = collect(llama, targets, [packed])
    weights = [module.weight.requires_grad_(True) for module in targets.values()]
    counts = [row.shape[1] - 1 for row in rows]
    losses = [llama(input_ids=row, labels=label).loss for row, label in zip(rows, labels, strict=True)]
    apart = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    expected = dict(zip(targets, (g.double() for g in torch.autograd.grad(apart, weights)), strict=True))
    assert_equal(found, expected, 1e-5)


def test_no_weight_gradient_is_ever_made_on_the_fast_path(llama):
    asked = []
    for parameter in llama.parameters():
        parameter.register_hook(asked.append) if parameter.requires_grad else None
    collect(llama, find_targets(llama, "all-linear"), list(text_batches(2)))
    assert asked == []


def test_the_model_is_left_as_it_was(llama):
    llama.requires_grad_(False)
    llama.lm_head.weight.requires_grad_(True)
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    collect(llama, find_targets(llama, "attention"), list(text_batches(2)))
    assert [name for name, parameter in llama.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]
    assert all(parameter.grad is None for parameter in llama.parameters())
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())
    assert not any("forward" in module.__dict__ for module in llama.modules())


def test_layers_that_share_a_weight_have_the_sum_of_all_uses(llama):
    first, second = (layer.self_attn for layer in llama.model.layers)
    second.q_proj.weight = first.q_proj.weight
    llama.requires_grad_(False)
    targets = find_targets(llama, "attention")
    batches = list(text_batches(3))
    found, _ = collect(llama, targets, batches)
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    expected = autograd_mean(llama, {names[0]: first.q_proj}, batches)[names[0]]
    for name in names:
        assert (found[name] - expected).norm() <= 1e-6 * expected.norm()


def test_an_output_head_tied_to_the_embedding_has_the_gradient_of_both(request):
    model, batches = family("gpt2", request)
    targets = {"lm_head": model.lm_head, **find_targets(model, ["c_attn"])}
    found, _ = collect(model, targets, batches)
    expected = autograd_mean(model, targets, batches)
    assert_equal(found, expected, 1e-6)


def test_a_layer_that_is_called_several_times_has_the_sum_of_all_calls(llama):
    llama.model.layers[1] = llama.model.layers[0]
    llama.requires_grad_(False)
    targets = find_targets(llama, "all-linear")
    batches = list(text_batches(3))
    assert_equal(collect(llama, targets, batches)[0], autograd_mean(llama, targets, batches), 1e-6)


class PassesBy(torch.nn.Module):
    """Uses one layer's weight without calling the layer, and never uses another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.called, self.passed_by, self.unused = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, rows):
        hidden = torch.tanh(self.called(rows))
        return torch.nn.functional.linear(hidden, self.passed_by.weight).square().mean()


def test_a_layer_that_is_passed_by_is_left_to_autograd_and_an_unused_one_has_none():
    model = PassesBy()
    targets = dict(model.named_children())
    batches = [torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    gradients = mean_gradients(model, targets, batches, model)
    assert gradients.counted == 3
    weights = [model.called.weight, model.passed_by.weight]
    expected = torch.autograd.grad(sum(model(batch) for batch in batches), weights)
    for name, total in zip(("called", "passed_by"), expected, strict=True):
        assert (3 * gradients[name] - total).norm() <= 1e-6 * total.norm()
    assert not gradients["unused"].any()


class Frozen8Bit(torch.nn.Linear):
    """A linear layer with an int8 weight and a scale: what a quantised layer looks like from outside."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.scale = linear.weight.abs().max().item() / 127
        integers = (linear.weight / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(integers, requires_grad=False)

    def dequantized(self):
        return self.weight.float() * self.scale

    def forward(self, rows):
        return torch.nn.functional.linear(rows, self.dequantized())


def test_a_quantised_layer_has_the_gradient_of_its_dequantised_weight(llama):
    llama.requires_grad_(False)
    for layer in llama.model.layers:
        layer.self_attn.q_proj = Frozen8Bit(layer.self_attn.q_proj)
    batches = list(text_batches(3))
    targets = find_targets(llama, "q_proj")
    found, _ = collect(llama, targets, batches)
    for layer in llama.model.layers:
        plain = torch.nn.Linear(32, 32, bias=False)
        plain.weight = torch.nn.Parameter(layer.self_attn.q_proj.dequantized(), requires_grad=False)
        layer.self_attn.q_proj = plain
    assert_equal(found, autograd_mean(llama, find_targets(llama, "q_proj"), batches), 1e-6)


def poisoned(model, bad, where):
    """A loss that is NaN for some micro-batches, or whose gradient is."""

    def loss(batch):
        value = model(**batch).loss
        if int(batch["input_ids"][0, 0]) not in bad:
            return value
        if where == "loss":
            return value * float("nan")
        # The value stays finite; the gradient of the square root at zero does not.
        return value + ((value - value.detach()) * 0).abs().sqrt()

    return loss


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_micro_batch_with_nan_is_left_out_for_all_layers_alike_and_named(llama, where):
    llama.requires_grad_(False)
    batches = list(text_batches(20))
    targets = find_targets(llama, "all-linear")
    bad = {int(batches[7]["input_ids"][0, 0])}
    good = [batch for batch in batches if int(batch["input_ids"][0, 0]) not in bad]
    left_out = [index for index, batch in enumerate(batches) if int(batch["input_ids"][0, 0]) in bad]
    assert 1 <= len(left_out) <= 2
    told = []
    found, progress = collect(
        llama, targets, batches, loss=poisoned(llama, bad, where), rows_of=lambda i: f"rows of {i}", on_step=told.append
    )
    assert progress.counted == len(good)
    assert list(progress.left_out) == left_out
    assert all(f"rows of {index}" in reason for index, reason in progress.left_out.items())
    assert_equal(found, autograd_mean(llama, targets, good), 1e-6)


def test_more_than_a_tenth_with_nan_is_an_error_that_names_them(llama):
    batches = list(text_batches(10))
    bad = {int(batch["input_ids"][0, 0]) for batch in batches[4:6]}
    with pytest.raises(GoraError, match=r"More than a tenth of the 10 micro-batches(.|\n)*micro-batch 4.*rows x"):
        collect(
            llama,
            find_targets(llama, "q_proj"),
            batches,
            loss=poisoned(llama, bad, "loss"),
            rows_of=lambda index: "rows x",
        )


class StopAfter(PassCheckpoint):
    """Asks to stop after so many micro-batches."""

    def __init__(self, folder, identity, after):
        self.left = after
        super().__init__(folder, identity, self.signal, self.interrupt)

    def signal(self):
        return 15 if self.left == 0 else None

    def due(self):
        self.left -= 1
        return super().due()

    def interrupt(self, number, cursor):
        raise KeyboardInterrupt(cursor)


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_collection_continues_to_the_same_sums_bit_for_bit(llama, tmp_path, after):
    llama.requires_grad_(False)
    batches = list(text_batches(7))
    targets = find_targets(llama, "all-linear")
    unbroken, _ = collect(llama, targets, batches)
    folder = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt) as stopped:
        collect(llama, targets, batches, checkpoint=StopAfter(folder, {"seed": 1}, after))
    assert stopped.value.args == (after,)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    again = StopAfter(folder, {"seed": 1}, -1)
    seen = []
    found, progress = collect(llama, targets, batches, checkpoint=again, on_step=lambda step: seen.append(step.index))
    assert seen == list(range(after, 7))
    assert progress.counted == 7
    assert all(torch.equal(found[name], unbroken[name]) for name in targets)


def test_saved_sums_of_another_collection_are_refused(llama, tmp_path):
    batches, targets = list(text_batches(3)), find_targets(llama, "q_proj")
    with pytest.raises(KeyboardInterrupt):
        collect(llama, targets, batches, checkpoint=StopAfter(tmp_path / "partial", {"seed": 1, "steps": 3}, 1))
    with pytest.raises(InputError, match="another run") as refused:
        collect(llama, targets, batches, checkpoint=StopAfter(tmp_path / "partial", {"seed": 2, "steps": 3}, -1))
    assert refused.value.problems == ("seed: 1 when it began, 2 now",)


def test_a_saved_shard_outside_its_folder_is_never_opened(llama, tmp_path):
    batches, targets = list(text_batches(3)), find_targets(llama, "q_proj")
    folder = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt):
        collect(llama, targets, batches, checkpoint=StopAfter(folder, {}, 1))
    document = json.loads((folder / "state.json").read_text())
    name = next(iter(document["tensors"]))
    document["tensors"][name] = "../elsewhere.safetensors"
    (folder / "state.json").write_text(json.dumps(document))
    manifest.seal(folder)
    with pytest.raises(InputError, match="outside its folder"):
        collect(llama, targets, batches, checkpoint=StopAfter(folder, {}, -1))


def test_a_loss_that_no_target_takes_part_in_is_an_error(llama):
    llama.requires_grad_(False)
    with pytest.raises(GoraError, match="No target layer"):
        collect(llama, find_targets(llama, "q_proj"), [{}], loss=lambda batch: torch.zeros(()))


def test_dropout_stays_off_under_activation_checkpointing(t5):
    assert t5.config.dropout_rate > 0
    batch = next(text_batches(1, labels_from=4))
    with recomputing_activations(t5, True):
        assert torch.equal(loss_of(t5)(batch), loss_of(t5)(batch))
        assert any(module.training for module in t5.modules())
    assert not any(module.training for module in t5.modules())


SHAPES = {"a": (100, 50), "b": (100, 50), "c": (200, 50)}


ONE_TOKEN = Operands(tokens=1, width=2)
LONG = Operands(tokens=ENOUGH_TOKENS, width=2)


def test_sums_stay_on_the_device_while_they_fit_and_the_rest_goes_to_the_host():
    assert sum_bytes(SHAPES) == 4 * 20_000
    assert split(SHAPES, 80_000, LONG).on_host == ()
    # Room for copies comes off first: four slots of the largest sum, here 40 kB each, which leaves nothing.
    assert split(SHAPES, 79_999, LONG).on_host == ("a", "b", "c")
    many = {f"layer {index}": (100, 50) for index in range(100)}
    placed = split(many, 100 * 20_000 - 1, LONG)
    assert placed.on_device == tuple(many)[:95]
    assert placed.on_host == tuple(many)[95:]
    assert placed.together == 1


@pytest.mark.parametrize("tokens", [64, 512, 1024, 5000])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_what_is_held_back_and_what_stays_on_the_device_never_exceed_what_is_free(tokens, share):
    shapes = {f"layer {index}": (4096, 1024 if index % 2 else 4096) for index in range(40)}
    free = share * sum_bytes(shapes)
    placed = split(shapes, free, Operands(tokens, 2))
    held = sum(buffered_bytes(shapes[key], tokens, placed.together, 2) for key in placed.on_host)
    near = sum_bytes({key: shapes[key] for key in placed.on_device})
    assert near + held + staging_bytes(shapes) <= free
    assert set(placed.on_device) | set(placed.on_host) == set(shapes)
    assert 1 <= placed.together <= max(1, ENOUGH_TOKENS // tokens)


class Counted(DeviceSums):
    """Sums that count how often they are added to."""

    def __init__(self, shapes, device):
        super().__init__(shapes, device)
        self.additions = dict.fromkeys(shapes, 0)

    def add(self, key, gradient, inputs):
        self.additions[key] += 1
        super().add(key, gradient, inputs)


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
@pytest.mark.parametrize("together", [2, 3, 8])
def test_contributions_that_are_held_back_add_up_to_float64_autograd(name, together, request):
    model, batches = family(name, request)
    targets = find_targets(model, "all-linear")
    expected = autograd_mean(model.double(), targets, [_double(batch) for batch in batches])
    model.float()
    attachment = Attachment(model, targets)
    inner = Counted({attachment.keys[name]: weight_shape(layer) for name, layer in targets.items()}, "cpu")
    sums = BufferedSums(inner, together)
    Collection(
        attachment=attachment,
        sums=sums,
        batch_of=batches.__getitem__,
        loss_of=loss_of(model),
        pace=Pace.alone(len(batches)),
        checkpoint=NoCheckpoint(),
    ).run()
    found = {name: sums.read(attachment.keys[name]).double() / len(batches) for name in targets}
    assert_equal(found, expected, 1e-6)
    # Turns are spread: a layer's first one comes earlier than its last, which the reading at the end brings about.
    assert max(inner.additions.values()) <= 1 + math.ceil(len(batches) / together)
    assert sum(inner.additions.values()) < len(batches) * len(inner.additions)


def test_sums_that_are_replaced_or_cleared_forget_what_was_held_back():
    inner = DeviceSums({"a": (2, 3), "b": (2, 3)}, torch.device("cpu"))
    sums = BufferedSums(inner, 4)
    for key in sums.keys():  # noqa: SIM118
        sums.write(key, torch.ones(2, 3))
    sums.add("b", torch.ones(1, 2), torch.ones(1, 3))
    sums.write("b", torch.zeros(2, 3))
    assert torch.equal(sums.read("b"), torch.zeros(2, 3))
    sums.add("b", torch.ones(1, 2), torch.ones(1, 3))
    sums.clear()
    assert not sums.read("a").any()
    assert not sums.read("b").any()


@pytest.mark.parametrize("owner", [0, 1])
def test_communication_does_not_reach_what_was_read_from_sums(owner):
    """A library overwrites what it sends, so that a sum that was read must not be what is sent."""

    class Other:
        index, size = 0, 2

        def sum_to(self, owner, tensor):
            tensor.copy_(tensor + 1 if owner == self.index else torch.full_like(tensor, math.nan))

    sums = DeviceSums({"a": (2, 3), "b": (2, 3)}, torch.device("cpu"))
    sums.write("a", torch.ones(2, 3))
    before = sums.read("b" if owner else "a")
    reduce_to_owners(sums, ["a", "b"], {"a": 0, "b": owner}, Other())
    assert torch.equal(sums.read("a"), torch.full((2, 3), 2.0))
    assert list(sums.keys()) == (["a"] if owner else ["a", "b"])
    assert before.isfinite().all()


def test_a_cpu_has_one_place_and_measures_nothing():
    def never():
        raise AssertionError

    assert place("auto", SHAPES, torch.device("cpu"), ONE_TOKEN, never).on_host == ()


@pytest.mark.parametrize(
    ("offload", "weights", "device", "host", "message"),
    [
        ("auto", 10**9, None, 10**9, "more than the 1.00 GB of free memory"),
        ("auto", 3 * 10**9, 2 * 10**9, 10**12, "larger GPU"),
        ("none", 10**9, 10**9 + 1, 10**12, r"Set gora\.offload: auto"),
        ("cpu", 10**6, 10**9, 10**3, "have to lie in host memory"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers_and_a_remedy(offload, weights, device, host, message):
    with pytest.raises(InputError, match=message):
        refuse_what_cannot_fit(offload, weights, sum_bytes(SHAPES), device_bytes=device, host_bytes=host)


def test_what_fits_is_estimated_in_one_line():
    line = refuse_what_cannot_fit("none", 16 * 10**9, sum_bytes(SHAPES), device_bytes=80 * 10**9, host_bytes=64 * 10**9)
    assert line.startswith("weights 16.00 GB, gradient sums 80 kB")


def test_conv1d_is_summed_as_out_in(request):
    model, batches = family("gpt2", request)
    targets = find_targets(model, ["c_attn"])
    assert all(isinstance(module, Conv1D) for module in targets.values())
    found, _ = collect(model, targets, batches)
    assert all(mean.shape == (96, 32) for mean in found.values())


def test_every_micro_batch_counts_equally(llama):
    llama.requires_grad_(False)
    targets = find_targets(llama, "attention")
    one, other = list(text_batches(2))
    found, progress = collect(llama, targets, [one, one, other, one])
    assert progress.counted == 4
    parts = [autograd_mean(llama, targets, [batch]) for batch in (one, other)]
    for name in targets:
        expected = (3 * parts[0][name] + parts[1][name]) / 4
        assert math.isclose((found[name] - expected).norm(), 0, abs_tol=1e-6 * expected.norm())


def test_reentrant_segments_of_the_caller_s_own_are_exact():
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 6)
    rows = torch.randn(4, 6, requires_grad=True)

    def loss(batch):
        return checkpoint(lambda x: torch.tanh(layer(x)), batch, use_reentrant=True).square().mean()

    gradients = mean_gradients(layer, {"layer": layer}, [rows], loss)
    (expected,) = torch.autograd.grad(torch.tanh(layer(rows)).square().mean(), layer.weight)
    assert (gradients["layer"] - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_micro_batches_add_what_eager_ones_add(llama, dtype):
    llama.requires_grad_(False).to("cuda", dtype)
    targets = find_targets(llama, "all-linear")
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(8):
        ids = torch.randint(3, 97, (2, 16), generator=generator).cuda()
        batches.append({"input_ids": ids, "labels": ids})
    expected, _ = collect(llama, targets, batches, device="cuda")
    attachment = Attachment(llama, targets)
    sums = make_sums(attachment, targets, device="cuda")
    run = Collection(
        attachment=attachment,
        sums=sums,
        batch_of=batches.__getitem__,
        loss_of=loss_of(llama),
        pace=Pace.alone(8),
        checkpoint=NoCheckpoint(),
    )
    recorded = []

    def record():
        recorded.append(Replay(attachment, sums, loss_of(llama), batches[0]))
        return lambda index: recorded[0](batches[index])

    run.recorder = Recorder(record, least=0, say=print)
    assert run.run().counted == 8
    assert recorded
    found = {name: sums.read(attachment.keys[name]).double().cpu() / 8 for name in targets}
    assert_equal(found, {name: mean.double() for name, mean in expected.items()}, 1e-5)


@pytest.mark.parametrize(
    ("usual", "least", "replayed", "by_replay", "said"),
    [
        ([(0.18, 0.2), (0.18, 0.2)], 0.01, [0.3, 0.04], range(8, 12), []),
        ([(0.18, 0.2), (0.18, 0.2)], 0.01, [0.3, 0.2], range(8, 10), ["no longer: it is not faster"]),
        ([(0.06, 0.2), (0.06, 0.2)], 0.01, [], [], ["no: the GPU does not wait for its host"]),
        ([(0.90, 1.0), (0.06, 0.2)], 0.01, [], [], ["no: the GPU does not wait for its host"]),
        ([(0.18, 0.2), (0.18, 0.2)], 0.06, [], [], ["no: padding would cost more than launches do"]),
        (
            [(0.18, 0.2), (0.18, 0.2)],
            0.01,
            RuntimeError("it looks at values\nand more"),
            [],
            ["no: it looks at values"],
        ),
        ([(0.18, 0.2), (0.18, 0.2)], 0.01, NotImplementedError(), [], ["no: NotImplementedError"]),
    ],
    ids=[
        "the GPU waits",
        "padding costs more than launches",
        "the GPU does not wait, and nothing is recorded",
        "the GPU waited once, for kernels to load",
        "the model is large, and nothing is recorded",
        "the model cannot be recorded",
        "the model cannot be recorded and says no more",
    ],
)
def test_passes_that_are_tried_count_and_are_recorded_where_that_is_faster(
    llama, monkeypatch, usual, least, replayed, by_replay, said
):
    """Twelve micro-batches, two of which share each pass as usual; times are given, everything else is run."""
    from gora.gradients import replay

    fails = isinstance(replayed, RuntimeError)
    seconds = iter([*usual, *((0.0, each) for each in ([] if fails else replayed))])

    def timed(work):
        work()
        return next(seconds)

    monkeypatch.setattr(replay, "_seconds", timed)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    targets = find_targets(llama, "attention")
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 97, (1, 12), generator=generator) for _ in range(12)]
    batches = [{"input_ids": each, "labels": each} for each in ids]
    expected, _ = collect(llama, targets, batches)
    attachment = Attachment(llama, targets)
    sums = make_sums(attachment, targets)
    replays, recordings, told, losses, words = [], [], [], {}, []

    def loss_of_each(batch):
        return torch.stack([loss_of(llama)(each) for each in batch.get("shared", [batch])]).squeeze(0)

    def record():
        recordings.append(len(told))
        if fails:
            raise replayed

        def run(index):
            replays.append(index)
            attachment.receiver = sums
            loss = loss_of(llama)(batches[index])
            loss.backward()
            return loss

        return run

    run = Collection(
        attachment=attachment,
        sums=sums,
        batch_of=batches.__getitem__,
        loss_of=loss_of_each,
        pace=Pace.alone(12),
        checkpoint=NoCheckpoint(),
        on_step=lambda step: told.append(step.index) or losses.update({step.index: step.loss}),
        recorder=Recorder(record, least, words.append),
        ends=range(2, 13, 2),
        together=lambda indices: {"shared": [batches[index] for index in indices]},
    )
    assert run.run().counted == 12
    assert replays == list(by_replay)
    assert words == said
    assert not list(seconds), "a pass that should have been timed was not"
    # Recorded, if at all, after four passes of two micro-batches, the last of which is not told of yet.
    assert recordings == ([6] if by_replay or fails else [])
    assert told == list(range(12))
    for index, batch in enumerate(batches):
        assert losses[index] == pytest.approx(loss_of(llama)(batch).item(), rel=1e-6)
    found = {name: sums.read(attachment.keys[name]).double() / 12 for name in targets}
    assert_equal(found, {name: mean.double() for name, mean in expected.items()}, 1e-5)


def test_the_host_runs_two_passes_ahead_however_many_micro_batches_share_them(monkeypatch):
    waited = []

    class OnDevice(SimpleNamespace):
        """Losses of a pass that the device has not ended."""

        is_cuda = True

        def detach(self):
            return self

        def view(self, _):
            return self

        def to(self, device, non_blocking):
            assert (device, non_blocking) == ("cpu", True)
            return torch.tensor(self.values)

    def event(number):
        return SimpleNamespace(query=lambda: number in waited, synchronize=lambda: waited.append(number))

    losses, told = Losses(), []
    for number in range(3):
        monkeypatch.setattr(
            torch.cuda,
            "current_stream",
            lambda number=number: SimpleNamespace(record_event=lambda: event(number)),
        )
        losses.put(range(3 * number, 3 * number + 3), OnDevice(values=[float(number)] * 3))
        told.append([index for index, _ in losses.ready()])
    assert told == [[], [], [0, 1, 2]]
    assert waited == [0]
    assert list(losses.all()) == [(3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0), (7, 2.0), (8, 2.0)]
