"""What gora's launcher starts in the tests, in place of the command: `python tests/helpers/workers.py SCENARIO`."""

import os
import sys
import threading
import time
from pathlib import Path

import gora.cli
from gora.errors import InputError
from gora.runtime.failure import FAILURE_FILE
from gora.runtime.interrupt import stopping_between_steps


def say(line):
    """A line in one piece, where processes share a pipe; `print` writes its end apart where nothing is buffered."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def failing(standalone_mode):
    """Process 1 fails; the other waits for it in a collective operation, and fails because of that."""
    from gora.runtime.world import join

    world = join()
    world.barrier()
    if world.index == 1:
        raise ValueError("what went wrong")
    world.barrier()


def refusing(standalone_mode):
    """Both fail, in turn, and with different codes."""
    if os.environ["RANK"] == "1":
        raise InputError("the first to fail")
    while not Path(os.environ[FAILURE_FILE]).exists():
        time.sleep(0.01)
    raise OSError("the second to fail")


def unending(standalone_mode):
    """A step that does not come to its end."""
    with stopping_between_steps():
        say("begun")
        while True:
            time.sleep(0.01)


def joining(standalone_mode):
    """Processes that meet, and no more."""
    from gora.runtime.world import join

    say(f"joined {join().size}")


def leaving(standalone_mode):
    """A process that is done, one of whose threads is in C++ again and again."""
    import torch.distributed as dist

    from gora.runtime.world import join

    join(alone_too=True)
    store, begun = dist.distributed_c10d._get_default_store(), threading.Event()

    def work():
        while True:
            store.add("key", 0)
            begun.set()

    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    begun.wait()
    sys.exit(int(sys.argv[2]))


def scratch(standalone_mode):
    """A process with a temporary folder, which ends when its input does."""
    from gora.runtime.scratch import Scratch

    with Scratch("launch") as folder:
        print(folder, flush=True)
        sys.stdin.read()


def running_out(standalone_mode):
    """Process 1 has memory for two rows at first, and from the second step on for one."""
    from gora.recipe import load_recipe
    from gora.runtime.world import join
    from gora.stages.train import train
    from gora.training import trial
    from gora.training.trainer import GoraTrainer

    step, compute, world = trial._step, GoraTrainer.compute_loss, join()

    def refuse_more_than(rows, size):
        if world.index == 1 and size > rows:
            raise RuntimeError("CUDA error: out of memory")

    def limited_step(context, model, rows, held):
        refuse_more_than(2, rows)
        step(context, model, rows, held)

    def limited_loss(self, model, inputs, *arguments, **named):
        refuse_more_than(1 if self.state.global_step else 2, self._layout.size)
        return compute(self, model, inputs, *arguments, **named)

    trial._step, GoraTrainer.compute_loss = limited_step, limited_loss
    train(load_recipe(sys.argv[2]).recipe)


if __name__ == "__main__":
    alone = {each.__name__: each for each in (leaving, scratch)}
    if "RANK" in os.environ or sys.argv[1] in alone:
        together = {each.__name__: each for each in (failing, refusing, unending, joining, running_out)}
        gora.cli.app = {**alone, **together}[sys.argv[1]]
    else:
        from gora.runtime.launch import Launch, _run

        gora.cli.app = lambda standalone_mode: _run(Launch(processes=2), 2, [sys.executable, *sys.argv])
    gora.cli.main()
