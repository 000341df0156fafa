"""Small models and the command in this process, which many tests share."""

import atexit
import gc
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Threads do not survive a fork, and a child that waits for those of the tokenizers library waits for ever.
os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))

# A shell ignores Ctrl-C in what it runs in the background, and so would everything that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests write need not survive a power cut, and a hundred waits for the disk are a tenth of a run.
os.fsync = lambda descriptor: None

ROOT = Path(__file__).parent.parent
# Rows that tests tokenise are kept here and not among the user's; other code of gora's makes other entries.
os.environ.setdefault("HF_HOME", str(ROOT / ".pytest_cache" / "hub"))
TINY = ROOT / "gora" / "assets" / "models" / "tiny-6m"
LONGEST = (
    "test_distributed",
    "test_methods",
    "test_train",
    "test_rate",
    "test_skipping",
    "test_keeping",
    "test_compare",
    "test_launch",
    "test_hub",
    "test_kill_points",
    "test_cli",
)


def pytest_sessionfinish(session):
    """End this process as a command of gora ends, whatever engines its tests have used."""
    from gora.runtime.shutdown import leave

    def end():
        atexit.unregister(end)
        leave(int(session.exitstatus))

    if "torch" in sys.modules:
        # Not yet: the report is still to be printed.
        atexit.register(end)


def pytest_collection_modifyitems(items):
    """The longest modules first, so that of two test processes none ends long before the other."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish(session):
    """Leave what was imported and collected out of all later collections of garbage, an eighth of most trainings."""
    gc.collect()
    gc.freeze()


def opened(recipe):
    """Rows, tokenizer and model of a recipe, in no run folder."""
    from gora.runs.context import RunContext

    context = RunContext.alone(recipe)
    assert context.inputs
    return context


@pytest.fixture
def gora_here(monkeypatch, capsys):
    """The command in this process, where all is imported: exit code, and what it wrote to both streams."""
    from gora.cli import run_command_line
    from gora.runtime.shutdown import destroy_process_groups

    def run(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["gora", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_command_line()
        return end.value.code or 0, *capsys.readouterr()

    before = dict(os.environ)
    yield run
    # An engine that was refused has joined its processes, and whatever runs next in this one would count among them.
    destroy_process_groups()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def llama():
    """A Llama-like model of two blocks with random weights, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def t5():
    """A T5-like encoder-decoder of two blocks with random weights and dropout, float32."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()
