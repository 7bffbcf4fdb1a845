import pytest
import torch
from fairseq.data import FairseqDataset
from omegaconf import OmegaConf

from mist_fairseq.tasks.base import TokenizerTask


class Numbers(FairseqDataset):
    """Five of them, in batches of two."""

    def __getitem__(self, index):
        return index

    def __len__(self):
        return 5

    def num_tokens(self, index):
        return 1

    def num_tokens_vec(self, indices):
        return 1 + 0 * indices

    def collater(self, samples):
        return {"id": torch.tensor(samples), "nsentences": len(samples)} if samples else {}


class Task(TokenizerTask):
    pass


def batches(split, rank):
    task = Task(OmegaConf.create({"train_subset": "train"}))
    dataset = task.datasets[split] = Numbers()
    for _ in range(2):  # fairseq keeps the iterator
        iterator = task.get_batch_iterator(dataset, max_sentences=2, num_shards=2, shard_id=rank)
    return list(iterator.next_epoch_itr(shuffle=False))


def test_no_batch_of_the_training_is_empty():
    assert [batch["nsentences"] for batch in batches("train", 0)] == [2, 1]
    full, none = batches("train", 1)
    assert (full["nsentences"], none["nsentences"], none["id"].tolist()) == (2, 0, [0])
    assert batches("valid", 1)[1] == {}  # which fairseq counts as it should


@pytest.mark.parametrize(("nsentences", "size", "gradient"), [(1, 4, 3.0), (0, 0, 0.0)])
def test_a_batch_of_no_sentences_leaves_no_trace(nsentences, size, gradient):
    model = torch.nn.Linear(1, 1)
    model.set_num_updates = lambda number: None

    def criterion(model, sample):
        loss = 3 * model.bias.sum()
        return loss, 4, {"loss": loss.detach() + 1, "ntokens": 4}

    class Optimizer:
        def backward(self, loss):
            loss.backward()

    task = Task(OmegaConf.create({}))
    _, found, logged = task.train_step({"id": None, "nsentences": nsentences}, model, criterion, Optimizer(), 0)
    assert found == size and logged["ntokens"] == size and model.bias.grad == gradient
    assert (logged["loss"] == 0) == (nsentences == 0)
