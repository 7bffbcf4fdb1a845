import pytest
import torch
from torch import nn

from mist_fairseq.files.torch_files import check_shapes


def build(rows=2):
    return lambda: nn.ModuleDict({"a": nn.Linear(3, rows), "b": nn.Linear(3, 2, bias=False)})


def tensors(**changes) -> dict[str, torch.Tensor]:
    return {**build()().state_dict(), **changes}


def test_tensors_of_the_model_are_accepted():
    check_shapes(build(), 2, tensors(), "file")
    one = torch.zeros(2, 3)
    check_shapes(build(), 2, {**tensors(), "a.weight": one, "b.weight": one}, "file")  # tied


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tensors(c=torch.zeros(1)), r"file: c has shape \(1,\), the configuration asks for None"),
        ({"a.weight": torch.zeros(2, 3)}, r"file: a.bias has shape None, the configuration asks for \(2,\)"),
        (tensors() | {"a.bias": torch.zeros(3)}, r"file: a.bias has shape \(3,\), the configuration asks for \(2,\)"),
        (tensors() | {"a.bias": torch.eye(2).to_sparse()}, "file: a.bias is not a plain tensor of floats on the CPU"),
        (tensors() | {"a.bias": torch.zeros(2, device="meta")}, "file: a.bias is not a plain tensor of floats on"),
        (tensors() | {"a.bias": torch.zeros(2, dtype=torch.int8)}, "file: a.bias is not a plain tensor of floats on"),
        (tensors() | {"a.bias": torch.zeros(1).expand(10**12)}, "file: its tensors share .* bytes of memory, and have"),
    ],
)
def test_other_tensors_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(build(), 1, given, "file")


def test_configurations_that_make_no_model_are_refused():
    with pytest.raises(ValueError, match="file: its configuration asks for 9 layers, but it has 3 tensors"):
        check_shapes(build(), 9, tensors(), "file")
    with pytest.raises(
        ValueError, match="file: its configuration makes no model: Trying to create tensor with negative"
    ):
        check_shapes(build(-1), 2, tensors(), "file")
    with pytest.raises(ValueError, match="the configuration asks for"):  # and takes no memory
        check_shapes(build(10**13), 2, tensors(), "file")
