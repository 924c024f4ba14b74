"""Run by test_faults under torchrun: training in which rank 1 fails, each attempt a bit later."""

import os

from edm2lite.training.__main__ import main
from edm2lite.training.trainer import Trainer

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
die_at = int(os.environ["DIE_AT"].split(",")[attempt])
step = Trainer.train_step


def train_step(self):
    if self.nimg == die_at and os.environ["RANK"] == "1":
        raise RuntimeError(f"rank 1 dies at {die_at}")
    return step(self)


Trainer.train_step = train_step
if __name__ == "__main__":
    main()
