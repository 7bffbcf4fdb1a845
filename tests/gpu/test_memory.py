"""What generation and training hold of the GPU's memory."""

import pytest
import torch
from fairseq import tasks, utils

import mist_fairseq.tasks  # noqa: F401 # registers with fairseq
from mist_fairseq.experiments.benchmark import inputs
from mist_fairseq.generate.decoding import Decoding
from tests.configurations import configuration
from tests.generate.plain import Runner
from tests.gpu import DEVICE, ON_GPU
from tests.helpers import sources, tiny_released

pytestmark = pytest.mark.gpu

LAYERS, D = 4, 256


def larger(dictionary, accelerate="none") -> Runner:
    sizes = dict(hidden_size=D, layers=LAYERS, heads=4, ffn_size=4 * D, max_positions=512)
    model = tiny_released(dictionary, source=400, target=48, **sizes)
    model.encoder.to(DEVICE)
    return Runner(model, accelerate)


def held(*tensors) -> int:
    """Bytes of the storages that tensors keep alive."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_an_encoded_source_is_its_keys_and_values(dictionary):
    B, S = 32, 300
    engine = larger(dictionary).engine
    given = [engine.asarray(part) for part in sources([S] * B, dictionary)]
    engine.encode(*given)  # workspaces
    before = torch.cuda.memory_allocated() if ON_GPU else 0
    state = engine.encode(*given)
    needed = 4 * B * S * D * (2 * LAYERS + 1)  # and the last hidden states, of which lengths are predicted
    source = state.source
    assert held(*source.keys, *source.values, source.hidden) < 1.1 * needed
    if ON_GPU:
        assert torch.cuda.memory_allocated() - before < 1.1 * needed


def test_graphs_do_not_fill_the_gpu(dictionary):
    """As batches of all sizes come, MIST's active ones among them; a graph for each would hold some gigabytes."""
    run = larger(dictionary, "cudagraph" if ON_GPU else "none")
    before = torch.cuda.memory_reserved() if ON_GPU else 0
    for size in range(1, 33):
        for length in (10, 30, 60, 120):
            run([[dictionary.bos(), *[50] * length, dictionary.eos()]] * size, Decoding("mist", 3, max_length=8))
    assert (torch.cuda.memory_reserved() if ON_GPU else 0) - before < 2**30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "VOCABULARY", 500)  # layers are to count, not logits
        inputs.write_data(folder, {"source": {100: 1}, "target": {20: 1}}, 16, "train")
    return folder


def training_memory(data, *words: str) -> int:
    """The most bytes that a training step's activations and gradients take; on a CPU what is kept for backward."""
    sizes = f"--encoder-layers {LAYERS} --encoder-embed-dim {D} --encoder-ffn-embed-dim {4 * D} "
    sizes += "--encoder-attention-heads 4"
    cfg = configuration(data, *f"--task mist --criterion mist_loss --arch mist_base {sizes}".split(), *words)
    torch.manual_seed(1)
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model).to(DEVICE).train(), task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    dataset, kept = task.dataset("train"), {}
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    sample = utils.apply_to_sample(lambda tensor: tensor.to(DEVICE), sample)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    if ON_GPU:
        criterion(model, sample)[0].backward()  # workspaces, and gradients
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        criterion(model, sample)[0].backward()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        criterion(model, sample)
    return sum(kept.values())


def test_activations_computed_again_are_not_kept(data):
    usual, less = training_memory(data), training_memory(data, "--checkpoint-activations")
    print(f"{usual / 2**20:.0f} MiB, {less / 2**20:.0f} with --checkpoint-activations")
    assert less < 0.7 * usual
