"""Keeps the libraries' own bars and notes off the terminal, where gora says what matters itself."""

import logging
import warnings


def quiet_loggers() -> None:
    """Only errors of the libraries that say things while they are imported; imports none of them."""
    for name in ("accelerate", "bitsandbytes", "DeepSpeed", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Only errors of transformers, datasets and PEFT reach the user; everything else is shown by gora."""
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    quiet_loggers()
    # Renamed arguments of coming major versions are gora's concern, not the user's.
    for module in ("transformers", "peft", "accelerate", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)
    # The schedule goes on where the first step of all is skipped.
    warnings.filterwarnings("ignore", category=UserWarning, message=r"Detected call of .lr_scheduler\.step")
    # PEFT announces what it settles by itself, such as the turned weights of GPT-2.
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
