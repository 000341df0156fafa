"""The recipe: every setting of a run, its type, its range, its default and its meaning.

The text under a field is its documentation everywhere: in the error messages, in `gora recipes schema` and in `docs/`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from gora.recipe.data_schema import DataSection, Fraction, Head, MixedSource, Packing, Positive, Section, SourceSection
from gora.recipe.method_facts import MethodName
from gora.recipe.origins import Origin

__all__ = [
    "AdapterSection",
    "DataSection",
    "EvaluationSection",
    "GoraSection",
    "Head",
    "MixedSource",
    "ModelSection",
    "Packing",
    "Recipe",
    "Section",
    "SourceSection",
    "TaskSection",
    "TrainSection",
]

Budget = Annotated[
    str,
    Field(
        pattern=r"^rank [1-9][0-9]{0,5} on (attention|all-linear)$",
        examples=["rank 8 on attention", "rank 16 on all-linear"],
    ),
]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
ImportanceKind = Literal["sensitivity", "nuclear-gradient", "nuclear-product", "effective-rank", "above-noise"]


class ModelSection(Section):
    """The base model, which is never changed."""

    name: str
    """Hub id or folder of a causal or encoder-decoder language model, of an encoder with `head: classification`, or of
    a vision model with an image head; `builtin:tiny-6m` ships with gora."""
    head: Head = "language"
    """`language` predicts tokens; `classification` predicts one of `data.choices`, with a head on an encoder (BERT,
    RoBERTa) or a decoder. What of the head the checkpoint lacks is drawn with the seed; the head is trained in full at
    the learning rate of A, and saved with the adapter. `image-classification` is the same for a vision model (ViT,
    DINOv2, Swin, ConvNeXt); `image-zero-shot` adapts the vision tower of CLIP or SigLIP, whose classifier are the
    frozen text embeddings of `data.class_prompts`."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the default branch."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; null takes the model's own."""
    new_tokens: list[Annotated[str, Field(min_length=1)]] = []
    """Tokens whose embeddings are trained and saved with the adapter; the tokenizer is given those that it lacks."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the base weights in memory; auto is bfloat16 on a GPU that computes in it, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Keep the frozen linear weights in 4 or 8 bits (bitsandbytes); null keeps them in `dtype`, or in the bits that the
    checkpoint is stored in."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel; auto is FlashAttention-2 where it is installed and the device has it, else torch's SDPA. Rows
    lie end to end with both (`data.packing`), with SDPA by torch's own FlashAttention for rows of several lengths."""


class AdapterSection(Section):
    """The low-rank adapter."""

    method: MethodName = "gora"
    """`gora` takes ranks and initial values from the plan, `lora` is the plain baseline, `full` trains the target
    weights themselves; `docs/methods.md` has them all."""
    dora: bool = False
    """Also train the magnitudes of the weights' columns apart (DoRA), where the method has it (`docs/methods.md`)."""
    rank: Positive | Literal["auto"] = 8
    """Rank of every layer (lora), or the reference rank whose parameter budget is shared out (gora). `auto` is the one
    that comes nearest to `parameters`, and is meant where `parameters` or targets auto are given without a rank."""
    parameters: Positive | Budget | None = None
    """How many parameters to train: a number, or those of another adapter, as `rank 8 on attention` or
    `rank 16 on all-linear`. null is `rank 8 on attention` with rank auto, and else what `rank` comes to."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Scaling numerator: alpha / sqrt(rank) for gora and rslora, alpha / rank for lora."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input during training."""
    targets: str | Annotated[list[str], Field(min_length=1)] = "attention"
    """Layers to adapt: `attention`, `all-linear` (all but the output head), layer names, a regex on full names, or
    `auto`: all linear layers with the parameters that `attention` would have had, of which layers may get none."""
    exclude: list[str] = []
    """Names of layers, and of fused experts, that are left out of the targets."""
    experts: bool = False
    """Also adapt the fused experts of a mixture (Mixtral, Qwen3-MoE, gpt-oss, ...): those of one parameter share a
    rank. Where the method can (`docs/models.md`)."""


class GoraSection(Section):
    """How gradients become ranks and initial values (arXiv 2502.12171)."""

    steps: Positive | Literal["auto"] = 64
    """N: micro-batches whose gradients are averaged; `auto` stops as soon as `settled` says, at 64 at the latest."""
    settled: Literal["importance", "start"] = "importance"
    """What has to settle with steps auto: every layer's `importance` with another micro-batch, as in the paper, or
    ranks and first step (`start`) with twice as many, which is stricter."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Relative change that counts as none with steps auto."""
    micro_batch_size: Positive | Literal["auto"] | None = None
    """Rows in each of those micro-batches; null takes `train.micro_batch_size`, `auto` fewer where memory asks for
    it."""
    gamma: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.05
    """First step as a fraction of the gradient: 0.05 at rank 8, 0.01 at 32, 0.005 at 128; 0 keeps the base model;
    `auto` is the best of at most 15 that are tried on four micro-batches held back, 0 where none beats the base."""
    step: Literal["gradient", "spectral", "weight", "weight-spectral"] = "gradient"
    """What gamma is a fraction of: the norm of each layer's `gradient`, as in the paper; 1 for all, by spectral norm
    (`spectral`; LoRA-One has 0.044 at rank 8); or each layer's `weight`, by Frobenius or by spectral norm
    (`weight-spectral`)."""
    scale: Literal["mean", "exact"] = "mean"
    """Whether a step against the gradient with a random A has its size on average, as in the paper, or in each layer
    (`exact`); every other step has it in each layer."""
    init_a: Literal["random", "gradient", "sign"] = "random"
    """A: drawn at random, as in the paper; `gradient`, the leading directions of each layer's gradient; or `sign`,
    those of the gradient's signs, which is what Adam's first step follows."""
    balance: bool = False
    """Share the singular values of the first step between A and B, instead of rows of A as long as random ones; for
    init_a gradient and sign."""
    rank_min: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Smallest rank; auto is half the reference rank, and 0 with targets auto; with 0 a layer may get no adapter."""
    rank_max: Positive | Literal["auto", "unbounded"] = "auto"
    """Largest rank; auto is four times the reference rank."""
    budget: Literal["paper", "parameters"] = "paper"
    """`paper`: the paper's equation, whose sum clipping may change; `parameters`: nearest to `adapter.parameters`, or
    to LoRA's parameters at `adapter.rank`."""
    allocation: Literal["proportional", "equal", "sqrt", "softmax"] = "proportional"
    """How importances share out the budget: `proportional`, as in the paper; `equal` ranks; by the root of the
    importance (`sqrt`); or `softmax` of importances brought to 0 to 1, at `temperature`."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """T of allocation softmax: the most important layer gets e^(1/T) times the share of the least, 7.4 times at 0.5."""
    offload: Literal["auto", "none", "cpu"] = "auto"
    """Where gradient sums live: `auto` on the GPU while they fit beside the activations, else in pinned host memory."""
    importance: ImportanceKind = "sensitivity"
    """Importance of a layer: mean |W * G|, nuclear norm of G or of W * G, how many directions G has (`effective-rank`),
    or the sum of those singular values of G that are above the noise between two halves of the micro-batches."""


class TrainSection(Section):
    """The training loop."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps, if the epochs do not end before."""
    batch_size: Positive = 64
    """Global batch size: rows in an optimizer step, over all processes and accumulation steps."""
    micro_batch_size: Positive | Literal["auto"] = 8
    """Rows in one forward and backward pass of one process; gradient accumulation follows from it. `auto` is the most
    that memory holds, by the estimate of `gora check` and a trial step on the longest rows."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = 5e-5
    """Peak learning rate of A. `auto` finds it before training, by a range test and short trials
    (`docs/learning-rate.md`)."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Learning rate of B over that of A; auto is the method's own, which is 16 for gora and lora+ and 1 for lora."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_ratio: Fraction = 0.03
    """Share of all steps in which the learning rate rises from zero."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """How many steps that are, instead of `warmup_ratio`."""
    min_lr_ratio: Fraction = 0.1
    """Final learning rate over the peak (cosine)."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Decoupled weight decay of AdamW."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's guard against division by zero."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient to this norm; null does not clip."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of both passes; auto is bf16 on a GPU that has it, else fp32. Adapter values stay float32."""
    kernels: Literal["auto", "fused", "liger", "compile", "none"] = "auto"
    """`fused`: the loss on supervised tokens alone, adapters in the base's bfloat16; `liger`: Liger's kernels as well;
    `compile`: fused, and torch.compile on each block, which takes minutes to begin; `none`: as transformers and PEFT
    compute. auto is `liger` where a GPU computes in bf16 and liger-kernel is installed and knows the model, else
    `fused`; without such a GPU it is `none`."""
    activation_checkpointing: bool | Literal["auto"] = False
    """Recompute activations in the backward pass: less memory, a third more time; `gora precompute` follows it. `auto`
    does so only where memory asks for it."""
    log_steps: Positive = 10
    """Steps between two lines of `metrics.jsonl`."""
    max_skipped_steps: Positive = 3
    """Training ends when so many steps in a row were skipped, because their loss or gradient was NaN or infinite."""
    save_steps: Positive | None = None
    """Steps between two checkpoints; null saves by the clock alone, and when the run is interrupted."""
    save_minutes: Annotated[float, Field(gt=0)] | None = 30.0
    """Minutes after which a checkpoint is saved if none was; with null a failure may lose the whole training."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints are kept."""
    keep: Literal["last", "best"] = "last"
    """Which values become the adapter: those after the last step, or those of the best evaluation of all that
    `evaluation.steps` asks for."""
    keep_by: str = "loss"
    """What the best evaluation has: the least evaluation `loss`, or the greatest main figure of a task of
    `evaluation.tasks`, such as `gsm8k` or `glue/sst2`, which is then asked at each of them."""
    patience: Positive | None = None
    """Training ends early after so many evaluations in a row that were not better than the best; null never does."""
    report_to: list[Tracker] = []
    """Trackers that are told losses and rates, such as `[tensorboard]`; their packages are installed apart, and keep
    their files in `tracking/` of the run folder (`docs/tracking.md`)."""


class TaskSection(Section):
    """A task that closes `gora run`, as `gora eval` would run it."""

    name: str
    """`gsm8k`, `glue/sst2`, ...: see `gora eval --help`."""
    path: str | None = None
    """Hub id, file or folder with the questions; null is the published set."""
    max_rows: Positive | None = None
    """Ask the first questions only; null asks all."""
    max_new_tokens: Positive | None = None
    """Longest answer in tokens; null is the task's own."""
    columns: dict[str, str] = {}
    """Names of the columns of rows of your own (choice, exact): `{prompt: question, choices: options, answer: label}`.
    Without `prompt` a question is what was trained, without `choices` they are those of `data.choices`."""
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")] | None = None
    """What results call the task, where it is asked of several sets; null is its name."""


class EvaluationSection(Section):
    """Loss on rows that are not trained on, and tasks."""

    steps: Positive | None = None
    """Steps between two evaluations during training; null evaluates before and after only."""
    micro_batch_size: Positive | None = None
    """Rows in one evaluation pass; null takes `train.micro_batch_size`."""
    tasks: list[TaskSection] = []
    """Tasks for the trained model, such as `{name: gsm8k}`; `gora run` closes with them."""
    batch_size: Positive = 64
    """Questions that are answered at a time."""
    samples: Annotated[int, Field(ge=0)] = 0
    """How many evaluation prompts are answered at every evaluation of `steps`, to see what the model writes: the first
    is shown, all are in `samples.jsonl`."""


class Recipe(Section):
    """A complete run: sections `model` and `data` name what is tuned on what, the rest has defaults."""

    extends: Annotated[str | None, Field(exclude=True)] = None
    """A built-in recipe, or a file beside this one, whose settings hold where this recipe has none of its own."""
    preset: Literal["auto", "paper"] = "auto"
    """What a recipe's silence means. `auto`: gora decides from the data and the machine, and says what and why
    (`docs/preset.md`); `paper`: the published settings, which are the defaults given here."""
    description: str = ""
    """One line for the list of recipes."""
    model: ModelSection
    """The base model."""
    data: DataSection
    """Rows, and how they become tokens."""
    adapter: AdapterSection = AdapterSection()
    """The low-rank adapter."""
    gora: GoraSection = GoraSection()
    """How gradients become ranks and initial values."""
    train: TrainSection = TrainSection()
    """The training loop."""
    distributed: str = "ddp"
    """What keeps processes in step: `ddp`, `zero2`, `zero2-offload`, `zero3`, `fsdp`, or a file of DeepSpeed (JSON) or
    Accelerate (YAML); `auto` is `ddp` where each GPU has room for the model, else `fsdp`."""
    evaluation: EvaluationSection = EvaluationSection()
    """Loss on rows that are not trained on, and tasks."""
    output: str | None = None
    """The run folder; null is `runs/` and the recipe's name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of data order, micro-batches and initial values."""

    _origins: Mapping[str, Origin] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where values come from, by dotted key; those that are not here are the schema's defaults."""
        return self._origins

    def with_origins(self, origins: Mapping[str, Origin]) -> "Recipe":
        """The same settings, with more known of where they come from."""
        recipe = self.model_copy()
        recipe._origins = {**self._origins, **origins}
        return recipe

    def __eq__(self, other: Any) -> bool:
        """Equal settings make equal recipes, wherever they come from."""
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]
