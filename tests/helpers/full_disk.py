"""`gora` in two processes, whose disk is full from the second checkpoint on: no file may then have more than 100 kB."""

import os
import resource
import sys

import gora.cli
from gora.runtime.launch import Launch, _run
from gora.training.trainer import GoraTrainer

LIMIT = 100_000

save = GoraTrainer._save_checkpoint


def saving(self, *arguments):
    if self.state.global_step == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    return save(self, *arguments)


GoraTrainer._save_checkpoint = saving

if __name__ == "__main__":
    if "RANK" not in os.environ:
        gora.cli.app = lambda standalone_mode: _run(Launch(processes=2), 2, [sys.executable, *sys.argv])
    gora.cli.main()
