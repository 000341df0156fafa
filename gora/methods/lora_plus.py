"""LoRA+ (arXiv 2402.12354): LoRA whose B learns 16 times as fast as its A."""

from gora.methods.lora import Lora


class LoraPlus(Lora):
    """LoRA with another ratio of rates."""

    name = "lora+"
    lr_ratio = 16.0
