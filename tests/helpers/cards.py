"""The lines of a model card that load what it is about."""

import json


def loaded_as_told(adapter):
    """Model, and tokenizer or image processor, by the lines of the card; folders stand for its words for them."""
    card = (adapter / "README.md").read_text(encoding="utf-8")
    lines = card.partition("```python\n")[2].partition("```")[0]
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    names = {}
    exec(lines.replace('"ADAPTER"', repr(str(adapter))).replace('"BASE"', repr(base)), names)
    return names["model"].eval(), names.get("tokenizer") or names["processor"]
