"""Started by torchrun: train the toy on this rank's share and save the weights from rank 0."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from alignbench.training.parallel import Parallel
from tests.training.test_driver import make_driver

if __name__ == "__main__":
    torch.set_num_threads(1)
    parallel = Parallel("fp32")
    driver, line = make_driver(Path(sys.argv[1]), parallel, micro_batch=2)
    totals = driver.train()
    if parallel.is_main:
        torch.save(
            {"weights": line.state_dict(), "sequences": totals.sequences}, Path(sys.argv[1]) / "out.pt"
        )
    parallel.close()
