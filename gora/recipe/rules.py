"""Settings that contradict each other, each rule beside the keys that it concerns."""

from collections.abc import Iterator

from gora.errors import InputError
from gora.recipe import data_rules, image_rules  # noqa: F401 - their rules join the others
from gora.recipe.contradiction import RULES, Contradiction, rule
from gora.recipe.derived import automatic, gradient_steps, micro_batch_size, rank_bounds, training_micro_batch_size
from gora.recipe.method_facts import METHOD_FACTS, facts_of
from gora.recipe.schema import Recipe, TrainSection

_MOST_ROWS = 10**8
_LARGEST_RANK = 2**17


def contradictions(recipe: Recipe) -> list[Contradiction]:
    """All contradictions in a recipe whose values are each valid by themselves."""
    return [found for check in RULES for found in check(recipe)]


def accumulation_steps(train: TrainSection, processes: int) -> int:
    """How many forward and backward passes of each process make one optimizer step; with `auto`, for one row at a time.

    Args:
        train: the training section.
        processes: how many processes share the global batch, at least 1.

    Raises:
        InputError: the batch cannot be shared out evenly.
    """
    if train.micro_batch_size == "auto":
        if train.batch_size % processes:
            below = train.batch_size // processes * processes
            batches = " or ".join(str(size) for size in (below, below + processes) if size)
            raise InputError(
                f"train.batch_size ({train.batch_size}) is not a multiple of the {processes} processes. "
                f"Set train.batch_size: {batches}."
            )
        return train.batch_size // processes
    unit = train.micro_batch_size * processes
    if train.batch_size % unit:
        raise InputError(
            f"train.batch_size ({train.batch_size}) is not a multiple of train.micro_batch_size x processes "
            f"({train.micro_batch_size} x {processes} = {unit}). {_remedy(train, processes)}"
        )
    return train.batch_size // unit


def _remedy(train: TrainSection, processes: int) -> str:
    size = training_micro_batch_size(train)
    unit = size * processes
    below = train.batch_size // unit * unit
    batches = " or ".join(str(size) for size in (below, below + unit) if size)
    share, rest = divmod(train.batch_size, processes)
    # The bound keeps the search short for absurd sizes.
    smaller = range(min(size - 1, share, 4096), 0, -1)
    fitting = next((size for size in smaller if not rest and share % size == 0), None)
    instead = f", or train.micro_batch_size: {fitting}" if fitting else ""
    return f"Set train.batch_size: {batches}{instead}."


@rule
def _ranks(recipe: Recipe) -> Iterator[Contradiction]:
    """The reference rank's budget has to lie between the bounds; `auto` bounds always leave room for it."""
    if not facts_of(recipe.adapter.method).needs_plan or recipe.adapter.rank == "auto":
        # A rank that follows from the model is looked at when it is known.
        return
    low, high, rank = recipe.gora.rank_min, recipe.gora.rank_max, recipe.adapter.rank
    concerned = ("adapter.rank", "adapter.method")
    if isinstance(low, int) and low > rank:
        text = f"rank_min ({low}) is above adapter.rank ({rank}), whose budget can then not be met"
        yield Contradiction(("gora.rank_min", *concerned), text)
    if isinstance(high, int) and high < rank:
        text = f"rank_max ({high}) is below adapter.rank ({rank}), whose budget can then not be used up"
        yield Contradiction(("gora.rank_max", *concerned), text)
    bounds = rank_bounds(recipe.gora, recipe.adapter)
    if bounds.largest is not None and bounds.smallest > bounds.largest:
        text = f"rank_min ({_resolved(low, bounds.smallest)}) is above rank_max ({_resolved(high, bounds.largest)})"
        yield Contradiction(("gora.rank_min", "gora.rank_max", *concerned), text)


def _resolved(written: int | str, value: int) -> str:
    return f"auto, here {value}" if written == "auto" else str(value)


@rule
def _evaluations(recipe: Recipe) -> Iterator[Contradiction]:
    """What looks at evaluations during training needs some."""
    train, evaluation = recipe.train, recipe.evaluation
    asking = {
        "train.keep": train.keep == "best",
        "train.patience": train.patience is not None,
        "evaluation.samples": evaluation.samples > 0,
    }
    for key in (key for key, asks in asking.items() if asks and evaluation.steps is None):
        text = "there are no evaluations during training; say with evaluation.steps how many steps lie between two"
        yield Contradiction((key, "evaluation.steps"), text)
    if train.keep == "best" and recipe.adapter.method == "full":
        text = "the best values of a whole model are not kept; use keep: last, or another method"
        yield Contradiction(("train.keep", "adapter.method"), text)
    if train.keep_by != "loss":
        if train.keep_by not in (names := [task.name for task in evaluation.tasks]):
            text = f"{train.keep_by} must be `loss` or one of evaluation.tasks ({', '.join(names) or 'there are none'})"
            yield Contradiction(("train.keep_by", "evaluation.tasks"), text)
        if train.keep != "best" and train.patience is None:
            text = "nothing asks which evaluation is the best; add keep: best, or a patience"
            yield Contradiction(("train.keep_by", "train.keep"), text)
    if evaluation.samples and recipe.model.head != "language":
        text = "a classifier writes no answers; leave samples at 0"
        yield Contradiction(("evaluation.samples", "model.head"), text)


@rule
def _warmup(recipe: Recipe) -> Iterator[Contradiction]:
    ratio = TrainSection.model_fields["warmup_ratio"].default
    if recipe.train.warmup_steps is not None and recipe.train.warmup_ratio not in (ratio, 0):
        text = (
            f"warmup_steps ({recipe.train.warmup_steps}) and warmup_ratio ({recipe.train.warmup_ratio:g}) both say it"
        )
        yield Contradiction(("train.warmup_steps", "train.warmup_ratio"), f"{text}; keep one of them")


@rule
def _above_noise(recipe: Recipe) -> Iterator[Contradiction]:
    """Halves are known when the pass is over, and not kept of experts."""
    if recipe.gora.importance != "above-noise" or not facts_of(recipe.adapter.method).needs_plan:
        return
    if recipe.gora.steps == "auto":
        text = "above-noise compares halves of a whole pass, which auto would have to end; give gora.steps a number"
        yield Contradiction(("gora.importance", "gora.steps"), text)
    if recipe.adapter.experts:
        text = "halves of the gradients of experts are not kept; use another importance, or experts: false"
        yield Contradiction(("gora.importance", "adapter.experts"), text)


@rule
def _automatic_start(recipe: Recipe) -> Iterator[Contradiction]:
    if not (recipe.adapter.experts and facts_of(recipe.adapter.method).needs_plan):
        return
    if recipe.gora.gamma == "auto":
        text = "auto cannot try a first step on fused experts; give a number, or experts: false"
        yield Contradiction(("gora.gamma", "adapter.experts"), text)
    if recipe.gora.steps == "auto":
        text = "auto waits for every expert by itself, which few rows reach; give a number, or experts: false"
        yield Contradiction(("gora.steps", "adapter.experts"), text)


@rule
def _balance(recipe: Recipe) -> Iterator[Contradiction]:
    if recipe.gora.balance and recipe.gora.init_a == "random" and facts_of(recipe.adapter.method).needs_plan:
        text = "a random A has no singular values to share; use init_a: gradient or sign, or balance: false"
        yield Contradiction(("gora.balance", "gora.init_a"), text)


@rule
def _dora(recipe: Recipe) -> Iterator[Contradiction]:
    adapter = recipe.adapter
    if adapter.dora and not facts_of(adapter.method).supports_dora:
        able = ", ".join(facts.name for facts in METHOD_FACTS if facts.supports_dora)
        text = f"dora does not go together with {adapter.method}; methods that have it: {able}"
        yield Contradiction(("adapter.dora", "adapter.method"), text)


@rule
def _experts(recipe: Recipe) -> Iterator[Contradiction]:
    """What PEFT refuses for parameters that are no layer's weight."""
    adapter = recipe.adapter
    if not adapter.experts:
        return
    if not facts_of(adapter.method).supports_experts:
        able = ", ".join(facts.name for facts in METHOD_FACTS if facts.supports_experts)
        text = f"experts does not go together with {adapter.method}; methods that have it: {able}"
        yield Contradiction(("adapter.experts", "adapter.method"), text)
    if adapter.dropout:
        text = (
            f"dropout ({adapter.dropout:g}) cannot be put in front of fused experts; set it to 0, or experts to false"
        )
        yield Contradiction(("adapter.dropout", "adapter.experts"), text)
    if adapter.dora:
        text = "magnitudes of fused experts cannot be trained (DoRA); set dora or experts to false"
        yield Contradiction(("adapter.dora", "adapter.experts"), text)


@rule
def _batch(recipe: Recipe) -> Iterator[Contradiction]:
    train = recipe.train
    if train.micro_batch_size != "auto" and train.batch_size % train.micro_batch_size:
        text = f"batch_size ({train.batch_size}) is not a multiple of micro_batch_size ({train.micro_batch_size})"
        yield Contradiction(("train.batch_size", "train.micro_batch_size"), f"{text}. {_remedy(train, 1)}")


@rule
def _sizes(recipe: Recipe) -> Iterator[Contradiction]:
    """Sizes that no run has, and that would fill the memory before anything is refused."""
    # `auto` is at most the rows of a step.
    size = recipe.train.batch_size if "gora.micro_batch_size" in automatic(recipe) else micro_batch_size(recipe)
    rows = gradient_steps(recipe) * size
    if facts_of(recipe.adapter.method).needs_plan and rows > _MOST_ROWS:
        text = f"the gradient pass would draw {rows:,} rows, and may draw {_MOST_ROWS:,}; lower one of the two"
        yield Contradiction(("gora.steps", "gora.micro_batch_size", "train.micro_batch_size"), text)
    if recipe.adapter.rank != "auto" and recipe.adapter.rank > _LARGEST_RANK:
        text = f"rank {recipe.adapter.rank:,} is above {_LARGEST_RANK:,}, which no layer can use"
        yield Contradiction(("adapter.rank",), text)


@rule
def _parameters(recipe: Recipe) -> Iterator[Contradiction]:
    """A rank and words for a budget are two answers to one question; two numbers are compared when layers are known."""
    adapter = recipe.adapter
    if isinstance(adapter.parameters, str) and adapter.rank != "auto":
        text = f"{adapter.parameters!r} says how many parameters there are, as does adapter.rank ({adapter.rank})"
        yield Contradiction(("adapter.parameters", "adapter.rank"), f"{text}; give one of the two")
    if adapter.parameters is not None and facts_of(adapter.method).saved_as == "model":
        text = f"{adapter.method} trains the weights of its targets, however many those are; leave it out"
        yield Contradiction(("adapter.parameters", "adapter.method"), text)


@rule
def _targets(recipe: Recipe) -> Iterator[Contradiction]:
    import regex

    targets = recipe.adapter.targets
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            regex.compile(target)
        except (regex.error, OverflowError, RecursionError) as error:
            yield Contradiction(("adapter.targets",), f"{target[:60]!r} is not a valid regular expression: {error}")
