"""Training on the GPU against training on the CPU."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from fairseq import tasks, utils
from fairseq.trainer import Trainer

import mist_fairseq.tasks  # noqa: F401 # registers with fairseq
from mist_fairseq.experiments.benchmark import inputs
from tests.configurations import configuration
from tests.gpu import DEVICE, ON_GPU
from tests.helpers import gradients

pytestmark = pytest.mark.gpu

SIZES = "--{0}-layers 2 --{0}-embed-dim 64 --{0}-ffn-embed-dim 128 --{0}-attention-heads 4"
ENCODER, BOTH = SIZES.format("encoder"), f"{SIZES.format('encoder')} {SIZES.format('decoder')}"
OURS = "--task mist --criterion mist_loss --dropout 0 --attention-dropout 0"
NAT_MASS = f"{OURS} --activation-dropout 0 --arch nat_mass {ENCODER} --decoder-layers 2"
MIST = f"{OURS} --arch mist_base {ENCODER}"
AR = "--task mist_translation --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0 "
AR += "--attention-dropout 0 --activation-dropout 0 --arch"
NAR = "--task mist_translation_lev --criterion nat_loss --label-smoothing 0.1 --dropout 0 --attention-dropout 0 "
NAR += f"--activation-dropout 0 --share-all-embeddings {BOTH} --arch"
ROTARY = "--rotary-base 160000 --local-rotary-base 10000 --local-window 2 --global-every 2"
MODELS = {
    "mist_base": f"{OURS} --arch mist_base",  # in full size
    "mist_small": f"{OURS} --arch mist_small",
    "mist": MIST,
    "no mixing": f"{MIST} --mist-loss-factor 0",
    "no glancing": f"{MIST} --glancing-ratio 0",
    "UniLM": f"{MIST} --rel-pos-bins 8 --max-rel-pos 16",
    "ALBERT": f"{MIST} --embedding-size 32 --shared-layers --activation-fn gelu_new",
    "ModernBERT": f"{MIST} --pre-norm --gated-ffn --without-biases {ROTARY}",
    "untied": f"{MIST} --untie-head",
    "copy head": f"{MIST} --copy-head",
    "nat_mass": NAT_MASS,
    "nat_mass without mixing": f"{NAT_MASS} --mist-loss-factor 0",
    "transformer": f"{AR} transformer --share-all-embeddings {BOTH}",
    "mass": f"{AR} mass_base {BOTH}",
    "bart": f"{AR} bart_base {BOTH}",
    "bang": f"{AR} bang_nar {ENCODER} --decoder-layers 2",
    "prophetnet": f"{AR} prophetnet {ENCODER} --decoder-layers 2",
    "nat": f"{NAR} nonautoregressive_transformer",
    "inat": f"{NAR} iterative_nonautoregressive_transformer --train-step 1",
    "cmlm": f"{NAR} cmlm_transformer",
    "insertion": f"{NAR} insertion_transformer --noise random_delete",
    "levt": f"{NAR} levenshtein_transformer --noise random_delete",
}
# What fairseq-train takes. A CPU knows bf16 alone and runs the others in fp32.
PRECISIONS = ["--precision bf16", "--fp16", "--amp"]
UPDATES, BATCH = 200, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lengths = {"source": {4: 1, 9: 1, 30: 1}, "target": {3: 1, 5: 1, 12: 1}}
    inputs.write_data(folder, lengths, 24, "train")
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_cpu(name, data):
    if name == "prophetnet":
        pytest.importorskip("transformers")
    cfg = configuration(data, *MODELS[name].split())
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    model = task.build_model(cfg.model).train()
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    dataset = task.dataset("train")
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    if hasattr(task, "inject_noise"):
        sample["prev_target"] = task.inject_noise(sample["target"])
    found = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(2)  # of which glancing takes its noise
        other = deepcopy(model).to(device)
        loss, size, _ = criterion(other, utils.apply_to_sample(lambda tensor, to=device: tensor.to(to), sample))
        (loss / size).backward()
        found.append((float(loss) / int(size), gradients(other)))
    (expected_loss, expected), (loss, actual) = found
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)
    for parameter, gradient in expected.items():
        assert (gradient is None) == (actual[parameter] is None), parameter
        if gradient is not None:
            difference = float((actual[parameter].cpu() - gradient).abs().max())
            assert difference < 1e-4 * largest, f"{parameter}: {difference} of {largest}"


# -- two hundred updates ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnable(tmp_path_factory):
    """Some sentences to learn by heart, of few words."""
    folder = tmp_path_factory.mktemp("learnable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "VOCABULARY", 500)
        inputs.write_data(folder, {"source": {8: 1, 16: 1, 24: 1}, "target": {5: 1, 9: 1}}, 64, "train")
    return folder


def last_loss(folder, words: str, on_cpu: bool, seed: int) -> float:
    """The mean loss of the last fifty of ``UPDATES`` by fairseq's trainer."""
    arguments = f"{MIST} --optimizer bert_adamw --lr 0.002 --clip-norm 0 --seed {seed} {words}"
    cfg = configuration(folder, *arguments.split(), *(["--cpu"] if on_cpu else []))
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(seed)
    model = task.build_model(cfg.model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    task.load_dataset("train")
    dataset, losses = task.dataset("train"), []
    random = np.random.default_rng(seed)
    while trainer.get_num_updates() < UPDATES:
        rows = random.choice(len(dataset), BATCH, replace=False)
        logged = trainer.train_step([dataset.collater([dataset[int(i)] for i in rows])])
        losses += [logged["loss"]] if logged else []  # none where fp16 overflowed
    return float(np.mean(losses[-50:]))


@pytest.fixture(scope="module")
def on_the_cpu(learnable):
    return [last_loss(learnable, "", True, seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("precision", ["", *PRECISIONS])
def test_trains_as_the_cpu_does_in_fp32(precision, learnable, on_the_cpu):
    words = precision if ON_GPU or "bf16" in precision else ""
    loss = last_loss(learnable, words, not ON_GPU, 4)
    expected, noise = np.mean(on_the_cpu), max(4 * np.std(on_the_cpu), 0.03 * np.mean(on_the_cpu))
    print(f"loss after {UPDATES} updates {precision or 'in fp32'}: {loss:.3f}, on a CPU {on_the_cpu}")
    assert abs(loss - expected) < noise
