"""Fine-tuning methods, one small file each."""

from gora.methods.adalora import AdaLora
from gora.methods.base import AdapterSettings, Method, Wrapping
from gora.methods.dora import Dora
from gora.methods.eva import Eva
from gora.methods.full import Full
from gora.methods.gora import Gora
from gora.methods.lora import Lora
from gora.methods.lora_fa import LoraFa
from gora.methods.lora_ga import LoraGa
from gora.methods.lora_plus import LoraPlus
from gora.methods.lora_pro import LoraPro
from gora.methods.milora import Milora
from gora.methods.olora import Olora
from gora.methods.pissa import Pissa
from gora.methods.rslora import RsLora

METHODS: dict[str, Method] = {
    "gora": Gora(),
    "lora": Lora(),
    "rslora": RsLora(),
    "dora": Dora(),
    "lora+": LoraPlus(),
    "olora": Olora(),
    "pissa": Pissa(),
    "milora": Milora(),
    "lora-ga": LoraGa(),
    "eva": Eva(),
    "adalora": AdaLora(),
    "lora-pro": LoraPro(),
    "lora-fa": LoraFa(),
    "full": Full(),
}

__all__ = ["METHODS", "AdapterSettings", "Method", "Wrapping"]
