"""Private and undocumented parts of other libraries that gora relies on, each with what breaks in gora without it.

A failure here is the first thing to look at when one of these libraries has a new version.
"""

import ast
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gora

SOURCES = Path(gora.__file__).parent
LIBRARIES = {"torch", "transformers", "peft", "accelerate", "datasets", "deepspeed"}


def takes(function: Callable, *names: str) -> bool:
    """Whether a function has these parameters."""
    return set(names) <= inspect.signature(function).parameters.keys()


def says(function: Callable, *words: str) -> bool:
    """Whether a function's code uses these names or texts."""
    code = inspect.unwrap(function).__code__
    constants = {text for each in code.co_consts for text in (each if isinstance(each, tuple) else (each,))}
    return set(words) <= {*code.co_names, *constants}


def used_within(owner: type, *names: str) -> bool:
    """Whether methods of a class use each of these names."""
    methods = [value for value in vars(owner).values() if inspect.isfunction(value)]
    return all(any(says(method, name) for method in methods) for name in names)


def two_layers() -> nn.Module:
    """Embeddings and a linear layer, enough for PEFT."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 4))


def wrapped(config_class: str = "LoraConfig", **settings):
    import peft

    return peft.get_peft_model(two_layers(), getattr(peft, config_class)(target_modules=["1"], **settings))


def names_of(model: nn.Module) -> str:
    return " ".join(name for name, _ in model.named_parameters())


# --- transformers -----------------------------------------------------------------------------------------------------


def checkpoints_names_become_those_of_the_model() -> bool:
    from transformers import MixtralConfig, MixtralForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(hidden_size=32, intermediate_size=8, num_hidden_layers=1))
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    stored = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    own = model.state_dict()
    return rename_source_key(stored, renamings, converters, model.base_model_prefix, own)[0] in own


def trainer_runs_epochs() -> bool:
    from transformers import Trainer

    first = list(inspect.signature(Trainer._run_epoch).parameters)[1:3]
    return first == ["model", "epoch"] and used_within(Trainer, "_run_epoch")


def trainer_asks_for_batches() -> bool:
    from transformers import Trainer

    return takes(Trainer.get_batch_samples, "epoch_iterator", "num_batches", "device") and says(
        Trainer._run_epoch, "get_batch_samples"
    )


def trainer_takes_the_norm_and_then_the_step() -> bool:
    from transformers import Trainer

    said = says(
        Trainer._run_epoch, "_get_grad_norm", "on_pre_optimizer_step", "optimizer", "optimizer_step_was_skipped"
    )
    return said and takes(Trainer._get_grad_norm, "model", "grad_norm")


def trainer_leaves_the_loss_alone() -> bool:
    from transformers import Trainer

    return says(Trainer.training_step, "model_accepts_loss_kwargs", "current_gradient_accumulation_steps")


def trainer_saves_checkpoints() -> bool:
    from transformers import Trainer

    return takes(Trainer._save_checkpoint, "model", "trial") and used_within(Trainer, "_save_checkpoint")


def trainer_reads_checkpoints() -> bool:
    from transformers import Trainer

    return (
        takes(Trainer._load_from_checkpoint, "resume_from_checkpoint")
        and takes(Trainer._load_optimizer_and_scheduler, "checkpoint")
        and takes(Trainer._load_rng_state, "checkpoint")
        and used_within(Trainer, "_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_rng_state")
    )


def accelerate_is_told_when_gradients_are_exchanged() -> bool:
    from accelerate.state import GradientState

    state = GradientState()
    before = state.sync_gradients
    state._set_sync_gradients(not before)
    changed = state.sync_gradients != before
    state._set_sync_gradients(before)
    return changed


def blocks_of_several_shapes_share_a_compilation() -> bool:
    import torch

    config = torch._dynamo.config
    return isinstance(config.force_parameter_static_shapes, bool) and isinstance(config.recompile_limit, int)


def models_say_which_attention_they_know() -> bool:
    from transformers import LlamaForCausalLM, PreTrainedConfig

    known = isinstance(LlamaForCausalLM._supports_sdpa, bool)
    return known and PreTrainedConfig(attn_implementation="eager")._attn_implementation_internal == "eager"


def trainer_asks_where_to_save() -> bool:
    from transformers import Trainer

    return takes(Trainer._get_output_dir, "trial") and says(Trainer._save_checkpoint, "_get_output_dir")


def arguments_count_gpus() -> bool:
    from transformers import TrainingArguments

    arguments = TrainingArguments(use_cpu=True, report_to=[])
    arguments._n_gpu = 7
    return arguments.n_gpu == 7


def accelerator_takes_a_configured_state() -> bool:
    from transformers.trainer_pt_utils import AcceleratorConfig

    return AcceleratorConfig(use_configured_state=True).use_configured_state


def deepspeed_config_can_be_forgotten() -> bool:
    from transformers.integrations import deepspeed

    return callable(deepspeed.unset_hf_deepspeed_config)


def configuration_knows_its_attention() -> bool:
    from transformers import LlamaConfig

    return LlamaConfig(attn_implementation="eager")._attn_implementation == "eager"


def configuration_differs_by_architecture_only() -> bool:
    from transformers import LlamaConfig

    from gora.models.fingerprint import config_fingerprint

    moved = LlamaConfig(attn_implementation="eager", dtype="bfloat16")
    moved._name_or_path = "elsewhere"
    return config_fingerprint(moved) == config_fingerprint(LlamaConfig())


def families_map_to_classes() -> bool:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    return AutoModelForCausalLM._model_mapping.get(LlamaConfig, None) is LlamaForCausalLM


def classes_say_whether_they_have_flash_attention() -> bool:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM._supports_flash_attn is True


def flash_attention_is_told_where_rows_begin() -> bool:
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    return takes(_flash_attention_forward, "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def classes_say_which_weights_they_leave_out() -> bool:
    from transformers import PreTrainedModel

    return not PreTrainedModel._keys_to_ignore_on_load_unexpected


def generation_remembers_where_it_is_from() -> bool:
    from transformers import GenerationConfig, LlamaConfig

    return GenerationConfig.from_model_config(LlamaConfig())._from_model_config is True


def blocks_recompute_in_training_mode() -> bool:
    from transformers import LlamaConfig, LlamaForCausalLM

    from gora.models.checkpointing import recomputing_activations

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).eval()
    passes = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: passes.append(1))
    ids = torch.tensor([[1, 2, 3]])
    with recomputing_activations(model, True):
        marked = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        model(input_ids=ids, labels=ids).loss.backward()
    return marked and len(passes) == 2


def weight_files_are_found(tmp_path: Path) -> bool:
    from transformers.utils import cached_file

    commit = "0123456789abcdef0123456789abcdef01234567"
    file = tmp_path / "models--some--model" / "snapshots" / commit / "config.json"
    for path, text in ((file, "{}"), (tmp_path / "models--some--model" / "refs" / "main", commit)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    arguments = {"cache_dir": tmp_path, "local_files_only": True}
    found = [cached_file("some/model", "config.json", revision=revision, **arguments) for revision in (None, commit)]
    return [Path(path) for path in found] == [file, file]


# --- PEFT -------------------------------------------------------------------------------------------------------------


def lora_ga_takes_a_gradient() -> bool:
    import peft

    model = two_layers()
    before = model[1].weight.detach().clone()
    model[1]._peft_loraga_grad = torch.randn(4, 6)
    settings = {"init_lora_weights": "lora_ga", "lora_ga_config": peft.LoraGAConfig(), "r": 1}
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["1"], **settings))
    return not torch.equal(model[1].base_layer.weight, before)


def patterns_are_resolved() -> bool:
    from peft.utils.other import get_pattern_key

    return get_pattern_key(["q_proj"], "layers.0.q_proj") == "q_proj" and get_pattern_key(["a"], "b") == "b"


def heads_have_known_names() -> bool:
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES

    return set(SEQ_CLS_HEAD_NAMES) == {"score", "classifier"}


def weights_are_dequantised() -> bool:
    from peft.utils.integrations import dequantize_module_weight

    layer = nn.Linear(2, 2)
    return dequantize_module_weight(layer) is layer.weight


def eva_takes_batches() -> bool:
    from peft.tuners.lora import eva

    options = ("prepare_layer_inputs_fn", "gather_distributed_inputs", "show_progress_bar")
    return takes(eva.initialize_lora_eva_weights, *options) and takes(
        eva.prepare_layer_inputs_fn_language_modeling, "layer_input", "model_input", "layer_name"
    )


def layers_hold_factors_by_adapter() -> bool:
    from peft.tuners.lora import LoraLayer

    layer = wrapped(r=2, lora_alpha=6).base_model.model[1]
    shapes = (layer.lora_A["default"].weight.shape, layer.lora_B["default"].weight.shape)
    held = (shapes, layer.scaling["default"], layer.active_adapters)
    delta = layer.get_delta_weight("default")
    return (
        isinstance(layer, LoraLayer)
        and held == (((2, 6), (4, 2)), 3.0, ["default"])
        and delta.shape == layer.get_base_layer().weight.shape
    )


def fused_experts_have_blocks_of_their_own() -> bool:
    """Wrappers of two parameters lie inside each other; A holds one expert after the other, B one direction."""
    import peft

    model = two_layers()
    model.mixture = nn.Module()
    model.mixture.one, model.mixture.two = (nn.Parameter(torch.zeros(3, 4, 6)) for _ in range(2))
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=[], target_parameters=["mixture.one", "mixture.two"])
    outer = peft.get_peft_model(model, config).base_model.model.mixture
    factor_a, factor_b = torch.randn(3, 2, 6), torch.randn(3, 4, 2)
    with torch.no_grad():
        outer.lora_A["default"].weight.copy_(factor_a.reshape(6, 6))
        outer.lora_B["default"].weight.copy_(factor_b.permute(1, 2, 0).reshape(4, 6))
    names = (outer.base_layer.parameter_name, outer.parameter_name)
    return names == ("one", "two") and torch.allclose(outer.get_delta_weight("default"), factor_b @ factor_a, atol=1e-5)


def parameters_have_known_names() -> bool:
    names = names_of(wrapped(use_dora=True))
    wanted = ("1.base_layer.weight", "1.lora_A.default", "1.lora_B.default", "1.lora_magnitude_vector.default")
    return all(f"base_model.model.{name}" in names for name in wanted)


def adalora_has_known_names() -> bool:
    model = wrapped("AdaLoraConfig", total_step=10, tinit=1, tfinal=1)
    known = all(f"base_model.model.1.{name}.default" in names_of(model) for name in ("lora_E", "ranknum"))
    return known and takes(model.base_model.update_and_allocate, "global_step")


def lora_fa_takes_pairs() -> bool:
    from peft.optimizers.lorafa import LoraFAOptimizer

    a, b = nn.Parameter(torch.randn(2, 6), requires_grad=False), nn.Parameter(torch.zeros(4, 2))
    group = {"params": [a, b], "names": ["x.lora_A", "x.lora_B"], "scaling_factors": [1.0, 1.0], "lr": 0.1}
    optimizer = LoraFAOptimizer([{**group, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-6}])
    b.grad = torch.ones(4, 2)
    optimizer.step()
    return bool(b.detach().abs().sum() > 0)


def tokens_are_trained() -> bool:
    from peft.utils import TrainableTokensWrapper, set_additional_trainable_modules

    layer = wrapped(trainable_token_indices={"0": [1, 3]}).base_model.model[0]
    values = layer.token_adapter
    return (
        isinstance(layer, TrainableTokensWrapper)
        and values.token_indices["default"] == [1, 3]
        and values.trainable_tokens_delta["default"].shape == (2, 6)
        and takes(set_additional_trainable_modules, "model", "peft_config", "model_config", "adapter_name")
    )


def heads_are_copied() -> bool:
    from peft.utils import ModulesToSaveWrapper

    layer = wrapped(modules_to_save=["0"]).base_model.model[0]
    return isinstance(layer, ModulesToSaveWrapper) and list(layer.modules_to_save) == ["default"]


# --- Accelerate -------------------------------------------------------------------------------------------------------


def accelerate_can_begin_again() -> bool:
    from accelerate.state import AcceleratorState

    return takes(AcceleratorState._reset_state, "reset_partial_state")


def accelerate_prepares_for_one_process() -> bool:
    from accelerate.data_loader import prepare_data_loader

    return takes(prepare_data_loader, "device", "num_processes", "process_index", "put_on_device")


def accelerate_divides_by_what_it_is_told() -> bool:
    from accelerate import Accelerator

    return Accelerator.gradient_accumulation_steps.fset is not None


def accelerate_reads_the_environment() -> bool:
    from accelerate import state

    read = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED")
    return says(state.AcceleratorState.__init__, *read) and says(state.PartialState.__init__, read[1])


# --- torch ------------------------------------------------------------------------------------------------------------


def tensors_count_what_is_written_into_them() -> bool:
    value = torch.nn.Parameter(torch.empty(2, 2, device="meta"))
    before = value._version
    with torch.no_grad():
        value.div_(2)
    return value._version > before


def agent_class():
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    return LocalElasticAgent


def agent_starts_processes() -> bool:
    return says(agent_class()._start_workers, "_pcontext")


def agent_ends_processes() -> bool:
    return takes(agent_class()._shutdown, "death_sig") and says(agent_class()._shutdown, "_pcontext", "close")


def agent_stops_processes() -> bool:
    return takes(agent_class()._stop_workers, "worker_group") and used_within(
        agent_class().__mro__[1], "_stop_workers", "_shutdown"
    )


def agent_meets_others() -> bool:
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousSettings

    return (
        takes(agent_class()._rendezvous, "worker_group")
        and isinstance(DynamicRendezvousHandler.settings, property)
        and "min_nodes" in RendezvousSettings.__dataclass_fields__
    )


def processes_are_closed_with_patience() -> bool:
    from torch.distributed.elastic.multiprocessing.api import PContext

    return list(inspect.signature(PContext.close).parameters) == ["self", "death_sig", "timeout"]


def processes_have_handlers() -> bool:
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    return used_within(SubprocessContext, "subprocess_handlers") and used_within(SubprocessHandler, "proc")


def agent_tells_processes_about_itself() -> bool:
    from torch.distributed.elastic.multiprocessing.api import PContext

    told = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE")
    return says(agent_class()._start_workers, *told) and says(PContext.start, "TORCHELASTIC_SIGNALS_TO_HANDLE")


# --- DeepSpeed --------------------------------------------------------------------------------------------------------


def deepspeed_says_what_it_does() -> bool:
    from deepspeed.runtime.engine import DeepSpeedEngine

    names = ("zero_optimization_stage", "zero_offload_optimizer", "get_global_grad_norm", "was_step_applied")
    return all(callable(getattr(DeepSpeedEngine, name)) for name in names)


def deepspeed_hands_over_buckets() -> bool:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Optimizer

    names = ("grad_position", "params_in_partition", "single_partition_of_fp32_groups", "clear_grad_attribute")
    return (
        takes(Optimizer.copy_grads_in_partition, "param", "group_idx")
        and takes(Optimizer.reduce_ipg_grads, "comm_dtype")
        and takes(Optimizer.complete_grad_norm_calculation_for_cpu_offload, "params")
        and used_within(Optimizer, *names, "get_param_gradient_attribute", "reduction_stream", "dp_process_group")
        and says(Optimizer.reduce_ipg_grads, "copy_grads_in_partition")
        and says(Optimizer.scaled_global_norm, "complete_grad_norm_calculation_for_cpu_offload", "params_in_partition")
    )


def tensors_are_added_together() -> bool:
    sums, more = [torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3)]
    torch._foreach_add_(sums, more)
    return all(bool((total == 2).all()) for total in sums)


def recordings_can_be_taken_off_the_allocator() -> bool:
    return callable(torch._C._cuda_endAllocateToPool) and callable(torch._C._cuda_releasePool)


def a_prepared_loader_iterates_its_base() -> bool:
    from accelerate.data_loader import prepare_data_loader

    prepared = prepare_data_loader(torch.utils.data.DataLoader([1, 2]), num_processes=1, process_index=0)
    prepared.base_dataloader = torch.utils.data.DataLoader([3, 4, 5])
    return [int(item) for item in prepared] == [3, 4, 5] and len(prepared) == 3


def a_loader_draws_a_number_when_it_starts() -> bool:
    torch.manual_seed(0)
    expected = torch.empty((), dtype=torch.int64).random_(), torch.rand(1)
    torch.manual_seed(0)
    iter(torch.utils.data.DataLoader([1, 2]))
    return bool(torch.rand(1) == expected[1])


def deepspeed_marks_its_parameters() -> bool:
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, Init

    return used_within(Init, "ds_id", "ds_numel") and takes(GatheredParameters, "params")


def deepspeed_keeps_modules_for_all_engines() -> bool:
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    kept = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    return FWD_MODULE_STACK == [] and callable(inspect.getclosurevars(kept).nonlocals["func"].cache_clear)


def deepspeed_builds_its_optimizer() -> bool:
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    return takes(CPUAdamBuilder.load, "verbose") and takes(DeepSpeedCPUAdam, "adamw_mode")


def deepspeed_asks_what_it_can_build() -> bool:
    from deepspeed import ops
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.ops.op_builder import ShareMemCommBuilder

    return ShareMemCommBuilder.NAME in ops.__compatible_ops__ and says(build_shm_op, "__compatible_ops__")


# --- Python -----------------------------------------------------------------------------------------------------------


def python_can_end_early() -> bool:
    import atexit

    return callable(atexit._run_exitfuncs)


@dataclass(frozen=True)
class Private:
    """A private API: its name, the check that it is as gora takes it, and what breaks in gora if it is not."""

    name: str
    holds: Callable[..., bool]
    breaks: str


PRIVATE = [
    Private(
        "transformers get_model_conversion_mapping and rename_source_key",
        checkpoints_names_become_those_of_the_model,
        "what a checkpoint holds beyond its model is not seen before training, and a merge loses it or is refused",
    ),
    Private(
        "transformers Trainer._run_epoch",
        trainer_runs_epochs,
        "a resumed training reads the rows of another epoch, and trains past its last step",
    ),
    Private(
        "transformers Trainer.get_batch_samples",
        trainer_asks_for_batches,
        "micro-batches no longer count by their supervised tokens, and `tokens` in metrics.jsonl stays zero",
    ),
    Private(
        "transformers Trainer._get_grad_norm",
        trainer_takes_the_norm_and_then_the_step,
        "a gradient whose norm is infinite is taken for one of zero, and grad_norm in metrics.jsonl stays zero",
    ),
    Private(
        "transformers Trainer.model_accepts_loss_kwargs",
        trainer_leaves_the_loss_alone,
        "the loss is divided a second time by the micro-batches of a step",
    ),
    Private(
        "transformers Trainer._save_checkpoint",
        trainer_saves_checkpoints,
        "checkpoints appear before they are whole, without provenance and manifest",
    ),
    Private(
        "transformers Trainer._load_from_checkpoint, _load_optimizer_and_scheduler and _load_rng_state",
        trainer_reads_checkpoints,
        "damaged files of a checkpoint end in a traceback",
    ),
    Private(
        "accelerate GradientState._set_sync_gradients",
        accelerate_is_told_when_gradients_are_exchanged,
        "processes exchange gradients with every micro-batch, and DeepSpeed steps with each",
    ),
    Private(
        "torch Tensor._version",
        tensors_count_what_is_written_into_them,
        "models that change their weights while they run end the merge in a traceback",
    ),
    Private(
        "torch _dynamo.config: force_parameter_static_shapes, recompile_limit",
        blocks_of_several_shapes_share_a_compilation,
        "train.kernels: compile compiles every block of a model for itself",
    ),
    Private(
        "transformers _supports_sdpa and _attn_implementation_internal",
        models_say_which_attention_they_know,
        "a checkpoint that asks for a kernel that is not here is not loaded with another",
    ),
    Private(
        "transformers Trainer._get_output_dir",
        trainer_asks_where_to_save,
        "checkpoints are written where they can be taken for whole ones",
    ),
    Private(
        "transformers TrainingArguments._n_gpu",
        arguments_count_gpus,
        "one process on a host of several GPUs trains in torch's DataParallel",
    ),
    Private(
        "transformers AcceleratorConfig.use_configured_state",
        accelerator_takes_a_configured_state,
        "DeepSpeed on CPUs trains every process by itself",
    ),
    Private(
        "transformers.integrations.deepspeed.unset_hf_deepspeed_config",
        deepspeed_config_can_be_forgotten,
        "a model that is loaded after a training under ZeRO-3 is sharded as well",
    ),
    Private(
        "transformers PreTrainedConfig._attn_implementation",
        configuration_knows_its_attention,
        "no run can say which attention kernel computes",
    ),
    Private(
        "transformers PreTrainedConfig.to_diff_dict with _name_or_path and _attn_implementation_autoset",
        configuration_differs_by_architecture_only,
        "the plan of a model is refused for the same model in another folder, type or attention kernel",
    ),
    Private(
        "transformers auto classes: _model_mapping",
        families_map_to_classes,
        "no model is loaded, since gora cannot tell which class it will be of",
    ),
    Private(
        "transformers PreTrainedModel._supports_flash_attn",
        classes_say_whether_they_have_flash_attention,
        "`model.attention: auto` never takes FlashAttention",
    ),
    Private(
        "transformers FlashAttention's arguments for rows end to end",
        flash_attention_is_told_where_rows_begin,
        "with flash_attention_2, rows are not packed",
    ),
    Private(
        "transformers PreTrainedModel._keys_to_ignore_on_load_unexpected",
        classes_say_which_weights_they_leave_out,
        "checkpoints with weights that their class leaves out on purpose are refused",
    ),
    Private(
        "transformers GenerationConfig._from_model_config",
        generation_remembers_where_it_is_from,
        "a saved model forgets the token that it was trained to stop at",
    ),
    Private(
        "transformers GradientCheckpointingLayer.gradient_checkpointing",
        blocks_recompute_in_training_mode,
        "activation checkpointing does nothing in the gradient pass, which runs out of memory",
    ),
    Private(
        "transformers.utils.cached_file",
        weight_files_are_found,
        "the files of base weights are not found, or are those of another commit than is loaded",
    ),
    Private(
        "PEFT _peft_loraga_grad",
        lora_ga_takes_a_gradient,
        "the method lora-ga-peft starts as plain LoRA, without a word",
    ),
    Private(
        "peft.utils.other.get_pattern_key",
        patterns_are_resolved,
        "adapters for vLLM get the scale of another layer",
    ),
    Private(
        "peft.utils.constants.SEQ_CLS_HEAD_NAMES",
        heads_have_known_names,
        "a classifier's head is saved twice or not at all",
    ),
    Private(
        "peft.utils.integrations.dequantize_module_weight",
        weights_are_dequantised,
        "importances of quantised layers are of packed numbers",
    ),
    Private(
        "peft.tuners.lora.eva.initialize_lora_eva_weights and prepare_layer_inputs_fn_language_modeling",
        eva_takes_batches,
        "the method eva cannot start",
    ),
    Private(
        "PEFT LoraLayer: lora_A, lora_B, scaling, active_adapters, get_delta_weight, get_base_layer",
        layers_hold_factors_by_adapter,
        "initial values do not reach the adapter, and nothing can be merged",
    ),
    Private(
        "PEFT ParamWrapper: parameter_name, and where A and B of each expert lie",
        fused_experts_have_blocks_of_their_own,
        "experts are trained from each other's initial values, or not at all",
    ),
    Private(
        "PEFT names of parameters: base_model.model., base_layer, lora_A, lora_B, lora_magnitude_vector",
        parameters_have_known_names,
        "A and B are not told apart: learning rates, fingerprints and saved adapters are wrong",
    ),
    Private(
        "PEFT AdaLoRA: lora_E, ranknum, update_and_allocate",
        adalora_has_known_names,
        "the method adalora never changes a rank, or trains its count of ranks",
    ),
    Private(
        "PEFT LoraFAOptimizer: names and scaling_factors of a group",
        lora_fa_takes_pairs,
        "the method lora-fa does not correct the gradient of B",
    ),
    Private(
        "PEFT TrainableTokensWrapper.token_adapter, set_additional_trainable_modules",
        tokens_are_trained,
        "`model.new_tokens` trains and merges no embeddings",
    ),
    Private(
        "PEFT ModulesToSaveWrapper.modules_to_save",
        heads_are_copied,
        "a classifier's head is trained in the wrong type, or not at all",
    ),
    Private(
        "accelerate AcceleratorState._reset_state",
        accelerate_can_begin_again,
        "DeepSpeed on CPUs cannot train after anything else in the same process",
    ),
    Private(
        "accelerate prepare_data_loader",
        accelerate_prepares_for_one_process,
        "rows that are dealt out to processes already are dealt out again",
    ),
    Private(
        "accelerate Accelerator.gradient_accumulation_steps",
        accelerate_divides_by_what_it_is_told,
        "the loss is divided a second time by the micro-batches of a step",
    ),
    Private(
        "accelerate ACCELERATE_MIXED_PRECISION and ACCELERATE_USE_DEEPSPEED",
        accelerate_reads_the_environment,
        "`accelerate launch` decides the precision instead of the recipe, and DeepSpeed on CPUs is not started",
    ),
    Private(
        "torch LocalElasticAgent._start_workers and _pcontext",
        agent_starts_processes,
        "`--gpus` and `--processes` leave processes without time to save",
    ),
    Private(
        "torch LocalElasticAgent._shutdown",
        agent_ends_processes,
        "processes are killed after 30 seconds of saving",
    ),
    Private(
        "torch LocalElasticAgent._stop_workers",
        agent_stops_processes,
        "once one process has failed, the others are waited for as if they were saving",
    ),
    Private(
        "torch SimpleElasticAgent._rendezvous, settings.min_nodes of its handler",
        agent_meets_others,
        "nothing says that a host waits for the others",
    ),
    Private(
        "torch PContext.close",
        processes_are_closed_with_patience,
        "the launcher cannot end its processes",
    ),
    Private(
        "torch SubprocessContext.subprocess_handlers and proc of each",
        processes_have_handlers,
        "a run that saved after a signal is reported as failed",
    ),
    Private(
        "torch TORCHELASTIC_RESTART_COUNT, _USE_AGENT_STORE and _SIGNALS_TO_HANDLE",
        agent_tells_processes_about_itself,
        "processes do not meet, or do not get the signals that their launcher got",
    ),
    Private(
        "DeepSpeedEngine: zero_optimization_stage, zero_offload_optimizer, get_global_grad_norm, was_step_applied",
        deepspeed_says_what_it_does,
        "trainings under ZeRO end at their first step, since gora cannot see which engine runs",
    ),
    Private(
        "DeepSpeedZeroOptimizer: copy_grads_in_partition, reduce_ipg_grads, grad_position, params_in_partition, "
        "single_partition_of_fp32_groups, complete_grad_norm_calculation_for_cpu_offload, clear_grad_attribute",
        deepspeed_hands_over_buckets,
        "zero2-offload cannot take a step",
    ),
    Private(
        "torch _foreach_add_",
        tensors_are_added_together,
        "passes that are recorded leave no gradients",
    ),
    Private(
        "torch _cuda_endAllocateToPool and _cuda_releasePool",
        recordings_can_be_taken_off_the_allocator,
        "passes that cannot be recorded take their memory with them",
    ),
    Private(
        "accelerate DataLoaderShard.base_dataloader",
        a_prepared_loader_iterates_its_base,
        "a GPU waits at the beginning of every epoch",
    ),
    Private(
        "torch DataLoader draws a number",
        a_loader_draws_a_number_when_it_starts,
        "dropout has other random numbers from the second epoch on than it had",
    ),
    Private(
        "DeepSpeed ds_id, ds_numel and GatheredParameters",
        deepspeed_marks_its_parameters,
        "adapters that were trained under ZeRO-3 are saved empty",
    ),
    Private(
        "DeepSpeed FWD_MODULE_STACK and _PartitionedParameterCoordinator__params_to_release",
        deepspeed_keeps_modules_for_all_engines,
        "models that ZeRO-3 has trained stay in memory",
    ),
    Private(
        "DeepSpeed CPUAdamBuilder.load",
        deepspeed_builds_its_optimizer,
        "zero2-offload falls back to torch's AdamW",
    ),
    Private(
        "DeepSpeed ops.__compatible_ops__, of deepspeed_shm_comm",
        deepspeed_asks_what_it_can_build,
        "the first training under ZeRO on CPUs compiles for a minute, or fails without a compiler",
    ),
    Private(
        "Python atexit._run_exitfuncs",
        python_can_end_early,
        "processes that are done end with SIGABRT",
    ),
]
# `os._exit` is documented; lm-eval's metrics end in `_stderr`; DeepSpeed's settings in `_device`.
NOT_OF_A_LIBRARY = {"_exit", "_stderr", "_device"}


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.name.replace(" ", "_"))
def test_a_private_api_is_as_gora_takes_it(private, tmp_path):
    arguments = (tmp_path,) if inspect.signature(private.holds).parameters else ()
    try:
        holds, why = private.holds(*arguments), ""
    except (ImportError, AttributeError, TypeError, KeyError, ValueError, RuntimeError) as error:
        holds, why = False, f" ({type(error).__name__}: {error})"
    assert holds, f"{private.name} is gone or has changed{why}: {private.breaks}."


def test_every_private_name_that_gora_uses_stands_in_the_list():
    trees = {path: ast.parse(path.read_text()) for path in SOURCES.rglob("*.py")}
    ours = {name for tree in trees.values() for name in _defined(tree)}
    used = {(name, path.name) for path, tree in trees.items() for name in _private_names(tree) if name not in ours}
    listed = " ".join(private.name for private in PRIVATE)
    assert [(name, file) for name, file in sorted(used) if name not in listed and name not in NOT_OF_A_LIBRARY] == []


def test_every_private_method_that_gora_overrides_stands_in_the_list():
    modules = [import_module(found.name) for found in pkgutil.walk_packages([str(SOURCES)], "gora.") if _plain(found)]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    overridden = {
        name
        for ours in classes
        if ours.__module__.startswith("gora.")
        for name, value in vars(ours).items()
        if name.startswith("_") and not name.startswith("__") and inspect.isfunction(value)
        if any(base.__module__.split(".")[0] in LIBRARIES and name in vars(base) for base in ours.__mro__)
    }
    listed = " ".join(private.name for private in PRIVATE)
    assert {name for name in overridden if name not in listed} == set()
    assert {"_save_checkpoint", "_start_workers"} <= overridden


def test_what_gora_keeps_in_a_trainer_or_an_agent_hides_nothing_of_theirs():
    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
    from transformers import Trainer

    from gora.runtime.agent import _Agent
    from gora.training.trainer import GoraTrainer

    for ours, theirs in ((GoraTrainer, [Trainer]), (_Agent, [agent_class(), SimpleElasticAgent])):
        own = _kept(ours)
        taken = {name for each in theirs for name in _kept(each)}
        assert own & taken <= {"optimizer", "lr_scheduler", "control", "model_accepts_loss_kwargs"}


def test_the_check_of_an_api_that_has_gone_says_what_breaks(tmp_path):
    gone = Private("some.package.thing", lambda: SimpleNamespace().thing, "nothing is trained")
    with pytest.raises(AssertionError, match=r"some\.package\.thing is gone or has changed .*: nothing is trained\."):
        test_a_private_api_is_as_gora_takes_it(gone, tmp_path)


def _private_names(tree: ast.AST) -> set[str]:
    """Attributes with a leading underscore, and texts that look like one."""
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {name for name in attributes | texts if name.isidentifier() and name[:1] == "_" != name[1:2]}


def _defined(tree: ast.AST) -> set[str]:
    """Functions, classes, attributes and texts in annotations that this code defines itself."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            stored = (part for target in targets for part in ast.walk(target))
            names |= {part.id for part in stored if isinstance(part, ast.Name)}
    return names


def _kept(owner: type) -> set[str]:
    """Attributes that methods of a class set on `self`."""
    tree = ast.parse(inspect.getsource(owner).lstrip())
    stores = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in stores if isinstance(node.value, ast.Name) and node.value.id == "self"}


def _plain(found: pkgutil.ModuleInfo) -> bool:
    """Not what runs at import, nor what needs a package that may be missing."""
    return not found.name.endswith("__main__") and ".sandbox.inside" not in found.name
