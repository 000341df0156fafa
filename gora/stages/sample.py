"""A look at what the model is trained on: one row as tokens, its supervised part marked."""

from gora.data.show import sample_text
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runtime.console import output


def show_sample(recipe: Recipe, *, trust_remote_code: bool = False) -> None:
    """Print the first training row as the model will see it; of an image, its size and class.

    Raises:
        InputError: the model's tokenizer or the rows cannot be used.
    """
    context = RunContext.alone(recipe, trust_remote_code=trust_remote_code)
    if context.inputs.of_text:
        output.say(sample_text(context.tokenizer, context.data.train))
        return
    rows = context.data.train
    row = rows.take([0])[0]
    shape = " x ".join(map(str, row["pixel_values"].shape))
    number = row["labels"][0]
    output.say(f"{rows.where(0)}: {shape} values for the model, class {number}, {rows.choices[number]!r}")
