"""What needs a GPU: ``pytest -m gpu``. With MIST_GPU_TEST_DEVICE=cpu the tests run without one, to be tried themselves."""

import os

import torch

DEVICE = torch.device(os.environ.get("MIST_GPU_TEST_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
