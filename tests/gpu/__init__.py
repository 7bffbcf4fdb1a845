"""What needs a GPU: ``pytest -m gpu``. MIST_GPU_TEST_DEVICE=cpu tries the tests themselves without one."""

import os

import torch

DEVICE = torch.device(os.environ.get("MIST_GPU_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
