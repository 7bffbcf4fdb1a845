import os
import sys

import torch

from mist_fairseq.experiments.benchmark.measuring import in_new_process, memory_status


def here():
    return os.getpid(), "fairseq" in sys.modules, torch.get_num_threads(), memory_status("VmHWM")


def test_a_new_process_has_done_nothing_else():
    """It has imported what its work needs, and has our number of threads."""
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        pid, imported, threads, peak = in_new_process(here)
    finally:
        torch.set_num_threads(usual)
    assert pid != os.getpid() and "fairseq" in sys.modules and not imported and threads == 3
    assert peak is None or peak < memory_status("VmHWM")
