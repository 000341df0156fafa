"""Fine-tuning methods, one small file each."""

from gora.methods.base import AdapterSettings, Method
from gora.methods.gora import Gora
from gora.methods.lora import Lora

METHODS: dict[str, Method] = {"gora": Gora(), "lora": Lora()}

__all__ = ["METHODS", "AdapterSettings", "Method"]
