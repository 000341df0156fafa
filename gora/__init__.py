"""gora: fine-tuning Hugging Face models with Gradient-driven Adaptive Low Rank Adaptation (arXiv 2502.12171)."""

__version__ = "0.1.0"
