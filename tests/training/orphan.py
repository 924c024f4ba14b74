"""Run by test_launcher under torchrun: training that soon notices that torchrun was killed."""

from edm2lite import processes
from edm2lite.training.__main__ import main

processes.POLL = 0.2
if __name__ == "__main__":
    main()
