import numpy as np
import pytest
import torch
from fairseq.data import ListDataset

from mist_fairseq.data.dataset import MistDataset
from mist_fairseq.mist.config import GraphSizes
from mist_fairseq.models.mist_model import PositionLimits
from tests.helpers import indices


def make(dictionary, lengths, limits=(10, 6), **options):
    """Pairs of X [SEP] and Y [SEP] whose tokens count up."""
    eos = dictionary.eos()

    def lines(sizes):
        return ListDataset([torch.tensor([*range(40, 40 + size - 1), eos], dtype=torch.int32) for size in sizes], sizes)

    return MistDataset(*map(lines, zip(*lengths)), dictionary, PositionLimits(*limits), **options)


def test_items_have_the_papers_form(dictionary):
    item = make(dictionary, [(4, 3)])[0]
    cls, sep = dictionary.bos(), dictionary.eos()
    assert item["source"].tolist() == [cls, 40, 41, 42, sep]
    assert item["cut_target"].tolist() == item["target"].tolist() == [40, 41, sep]


def test_long_ones_are_cut_and_never_dropped(dictionary):
    dataset = make(dictionary, [(9, 6), (10, 7), (30, 30)])
    cls, sep = dictionary.bos(), dictionary.eos()
    assert len(dataset[0]["source"]) == 10 and len(dataset[0]["cut_target"]) == 6  # exactly at the limits
    for index in (1, 2):
        assert dataset[index]["source"].tolist() == [cls, *range(40, 48), sep]
        assert dataset[index]["cut_target"].tolist() == [*range(40, 45), sep]
    assert len(dataset[2]["target"]) == 30  # the reference stays whole
    assert dataset.truncated() == (2, 2)
    indices, dropped = dataset.filter_indices_by_size(dataset.ordered_indices(), (10, 6))
    assert len(indices) == 3 and len(dropped) == 0
    assert dataset.size(2) == (10, 6) and dataset.num_tokens(np.arange(3)).tolist() == [10, 10, 10]


def test_targets_longer_than_their_graphs(dictionary):
    """A graph's first vertex says nothing. In training they are refused, with what would do, else cut for the loss."""
    dataset = make(dictionary, [(4, 5), (1, 5), (1, 9), (3, 7)], (10, 12), graph=GraphSizes(2, 5))
    assert [len(dataset[i]["cut_target"]) for i in range(4)] == [5, 4, 4, 7]
    assert dataset[1]["cut_target"].tolist() == [40, 41, 42, dictionary.eos()] and len(dataset[1]["target"]) == 5
    assert dataset.truncated() == (0, 2) and dataset.size(np.arange(4))[1].tolist() == [5, 4, 4, 7]
    with pytest.raises(
        ValueError, match=r"2 of 4 targets have more tokens .* --least-vertices 5\): give .*-vertices 10,"
    ):
        dataset.check_vertices()
    make(dictionary, [(4, 5), (1, 5), (1, 9), (3, 7)], (10, 12), graph=GraphSizes(2, 10)).check_vertices()
    with pytest.raises(ValueError, match="1 of 1 targets .*: give --least-vertices 12, or"):
        make(dictionary, [(4, 20)], (10, 12), graph=GraphSizes(2, 10)).check_vertices()
    longest = make(dictionary, [(4, 20)], (10, 12), graph=GraphSizes(2, 12))
    longest.check_vertices()
    assert len(longest[0]["cut_target"]) == 11, "as of the limits"
    make(dictionary, [(4, 20)], (10, 12)).check_vertices()


def test_collater_ships_lengths_and_flat_positions(dictionary):
    dataset = make(dictionary, [(4, 3), (2, 6), (5, 1)])
    batch = dataset.collater([dataset[i] for i in range(3)])
    inputs, pad = batch["net_input"], dictionary.pad()
    assert inputs["src_lengths"].tolist() == [5, 3, 6] and inputs["target_lengths"].tolist() == [3, 6, 1]
    assert inputs["src_tokens"].shape == (3, 6) and inputs["src_tokens"][1, 3:].tolist() == [pad] * 3
    for name, expected in indices([5, 3, 6], [3, 6, 1], limit=10).items():
        assert inputs[name].tolist() == expected.tolist()
    assert batch["ntokens"] == 10 and batch["nsentences"] == 3
    assert inputs["ids"].tolist() == batch["id"].tolist() == [0, 1, 2]
    assert dataset.collater([]) == {}


def test_sources_alone(dictionary):
    dataset = MistDataset(ListDataset([torch.tensor([dictionary.eos()])], [1]), None, dictionary, PositionLimits(10, 6))
    batch = dataset.collater([dataset[0]])
    assert batch["target"] is None and batch["net_input"]["src_tokens"].tolist() == [
        [dictionary.bos(), dictionary.eos()]
    ]


def test_batches_hold_sources_of_similar_length(dictionary):
    rng = np.random.default_rng(0)
    dataset = make(dictionary, rng.integers(1, 9, (500, 2)).tolist(), limits=(40, 40), shuffle=True)
    order = dataset.ordered_indices()
    assert sorted(order) == list(range(500))
    sizes, target_sizes = dataset.size(order)
    assert sizes.tolist() == sorted(sizes)
    for size in range(4, 8):  # targets of all lengths beside each other
        assert target_sizes[sizes == size].std() > 1.5
    dataset.shuffle = False
    assert (order != dataset.ordered_indices()).any()  # equal lengths in random order,
    dataset.shuffle = True
    np.random.seed(7)
    assert (order == dataset.ordered_indices()).all()  # the same whenever the batches are built: resuming needs that


def test_limits_are_read_at_every_use(dictionary):
    """A resumed checkpoint sets them after the data was loaded."""
    dataset = make(dictionary, [(9, 6)])
    dataset.limits.source, dataset.limits.target = 5, 4
    assert len(dataset[0]["source"]) == 5 and len(dataset[0]["cut_target"]) == 4 and dataset.size(0) == (5, 4)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("sizes", [{"max_sentences": 7}, {"max_tokens": 60}, {"max_tokens": 10**6}])
def test_no_sentence_is_lost_in_batching(dictionary, multiple, sizes):
    """fairseq's default --required-batch-size-multiple 8 would lose the last few."""
    rng = np.random.default_rng(0)
    for number in (1, 7, 8, 20, 61):
        dataset = make(dictionary, rng.integers(1, 9, (number, 2)).tolist())
        batches = dataset.batch_by_size(dataset.ordered_indices(), required_batch_size_multiple=multiple, **sizes)
        assert sorted(i for batch in batches for i in batch) == list(range(number))
        assert all(len(batch) for batch in batches)


def test_what_is_longer_than_a_batch_is_one_of_its_own(dictionary, caplog):
    sizes = [3, 9, 3, 8, 3, 9, 3, 3, 6]
    dataset = make(dictionary, [(size, 2) for size in sizes])  # and [CLS]
    order = dataset.ordered_indices()
    for multiple in (1, 8):
        batches = [list(batch) for batch in dataset.batch_by_size(order, 8, required_batch_size_multiple=multiple)]
        assert sorted(i for batch in batches for i in batch) == list(range(9))
        assert sorted(batch for batch in batches if max(sizes[i] for i in batch) > 3) == [[1], [3], [5], [8]]
        assert all(len(batch) == 1 or len(batch) * 4 <= 8 for batch in batches)
    message = "3 of 9 sentences have more than the 8 tokens of a batch (--max-tokens), up to 10: each is a batch of "
    assert caplog.messages == 2 * [message + "its own"]
    caplog.clear()
    dataset.batch_by_size(order, 10)
    assert not caplog.messages
