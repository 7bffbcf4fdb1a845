"""Source-target pairs as the model reads them."""

import logging
import os
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import FairseqDataset, data_utils
from fairseq.data.indexed_dataset import data_file_path, index_file_path
from torch import Tensor

from mist_fairseq.data.binarized import check_binarized
from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.mist.config import GraphSizes, PositionLimits
from mist_fairseq.mist.packing import real_positions
from mist_fairseq.mist.path_search import count_vertices

logger = logging.getLogger(__name__)


def load_pair(cfg, dictionary: TokenizerDictionary, split: str, epoch: int = 1, combine: bool = False):
    """Load binarized source and target of one split; the target is None where there is none.

    *cfg* is a task's: its data folders, languages and the name of the training split, which alone comes in shards.
    The pair may have been binarized in the other order.
    FileNotFoundError: there is none. ValueError: it is empty, its sides differ in length, or as of ``check_binarized``.
    """
    folders = utils.split_paths(cfg.data)
    folder = folders[(epoch - 1) % len(folders)] if split == cfg.train_subset else folders[0]
    if "," in split:
        raise ValueError(f"{split!r} are several splits: give one at a time")
    pair = [cfg.source_lang, cfg.target_lang]
    paths = [os.path.join(folder, f"{split}.{'-'.join(pair)}.{lang}") for lang in pair]
    turned = [os.path.join(folder, f"{split}.{'-'.join(pair[::-1])}.{lang}") for lang in pair]
    if not _is_there(paths[0]) and _is_there(turned[0]):
        paths = turned
    for path in paths:
        check_binarized(path, dictionary, combine, cfg.dataset_impl)
    load = data_utils.load_indexed_dataset
    source, target = (load(path, dictionary, cfg.dataset_impl, combine=combine) for path in paths)
    if source is None:
        raise FileNotFoundError(f"no data at {paths[0]}: run fairseq-preprocess with --{split}pref")
    if len(source) == 0:
        raise ValueError(f"{paths[0]} has no lines")
    if target is not None and len(source) != len(target):
        raise ValueError(f"{paths[0]} has {len(source):,} lines and {paths[1]} has {len(target):,}, expected as many")
    return source, target


def _is_there(prefix: str) -> bool:
    return any(map(os.path.exists, (prefix, index_file_path(prefix), data_file_path(prefix))))


def random_order(count: int, shuffle: bool = True) -> np.ndarray:
    """Give the numbers up to *count*, shuffled or not, the same each time."""
    # Not by numpy's generator, which fairseq seeds with the epoch: a resumed training would get other batches.
    return np.random.default_rng(1).permutation(count) if shuffle else np.arange(count)


def cut(tokens: Tensor, limit: int) -> Tensor:
    """At most *limit* tokens, with the last of all, [SEP], at the end."""
    return tokens if len(tokens) <= limit else torch.cat([tokens[: limit - 1], tokens[-1:]])


def log_cut(number: int, of: int, limit: int):
    """Say so if some of the lines of fairseq-interactive, or of a split, are longer than the model reads."""
    if number:
        message = "%s of %s sources are longer than the model reads, and cut to %d tokens (--max-source-positions)"
        logger.warning(message, f"{number:,}", f"{of:,}", limit)


class AllBatches(FairseqDataset):
    """Mixed into a data set of fairseq's: batches of all sentences."""

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """As fairseq's, but without its two failures.

        It leaves out a last batch that is no multiple of 8 sentences, and stops at a sentence of more than
        *max_tokens*, which is a batch of its own here.
        """
        sizes = self.num_tokens_vec(indices)
        if max_tokens is not None and (longer := int((sizes > max_tokens).sum())):
            logger.warning(
                "%s of %s sentences have more than the %s tokens of a batch (--max-tokens), up to %s: each is a batch "
                "of its own",
                *(f"{number:,}" for number in (longer, len(sizes), max_tokens, sizes.max())),
            )
            sizes = np.minimum(sizes, max_tokens)
        limits = (max_tokens, max_sentences, required_batch_size_multiple)
        batches = data_utils.batch_by_size(indices, None, sizes.astype("int64"), *limits)
        rest = indices[sum(len(batch) for batch in batches) :]
        return [*batches, rest] if len(rest) else batches


class MistDataset(AllBatches):
    """``[CLS] X [SEP]`` and ``Y [SEP]``, cut to the limits and right-padded.

    *source* and *target* or None are as fairseq-preprocess writes them. *limits* are read at every use: a resumed
    checkpoint may set them after the data is loaded. *graph* is that of a model with paths, which holds shorter targets
    than the limits say. *shuffle* orders sentences of equal lengths at random, or with *mixed_lengths* all sentences.
    """

    def __init__(
        self,
        source,
        target,
        dictionary: TokenizerDictionary,
        limits: PositionLimits,
        shuffle: bool = False,
        mixed_lengths: bool = False,
        graph: GraphSizes | None = None,
    ):
        self.source, self.target = source, target
        self._source_sizes, self._target_sizes = (np.asarray(side.sizes if side else []) for side in (source, target))
        self.dictionary, self.limits, self.shuffle, self.mixed_lengths = dictionary, limits, shuffle, mixed_lengths
        self.graph = graph

    def size(self, index):
        """Tokens of ``[CLS] X [SEP]`` and of ``Y [SEP]`` (0 without targets) after cutting; of many with an array."""
        source, longest = np.minimum(self._source_sizes[index] + 1, self.limits.source), self.limits.target
        if self.graph is not None:
            longest = count_vertices(source, *self.graph, longest) - 1
        return source, 0 if self.target is None else np.minimum(self._target_sizes[index], longest)

    def num_tokens(self, index):
        """Tokens that ``--max-tokens`` counts: the longer side's, of a graph its vertices; of many with an array."""
        source, target = self.size(index)
        if self.graph is not None:
            target = count_vertices(source, *self.graph, self.limits.target)
        return np.maximum(source, target)

    num_tokens_vec = num_tokens

    def truncated(self) -> tuple[int, int]:
        """How many sources and targets are longer than the limits."""
        sources = self._source_sizes + 1 > self.limits.source
        targets = self._target_sizes > self.size(slice(None))[1]
        return int(sources.sum()), int(targets.sum())

    def check_vertices(self):
        """Refuse targets of more tokens than their graphs have vertices after the first; ValueError says how many."""
        if self.graph is None:
            return
        tokens = np.minimum(self._target_sizes, self.limits.target - 1)  # the largest graph's; longer ones are cut
        if number := int((tokens > self.size(slice(None))[1]).sum()):
            raise ValueError(
                f"{number:,} of {len(self):,} targets have more tokens than their graphs have vertices after the first "
                f"(--upsample {self.graph.upsample} --least-vertices {self.graph.least}): give "
                f"--least-vertices {int(tokens.max()) + 1}, or more --upsample"
            )

    def ordered_indices(self):
        """Order by source length alone: targets of one length would pull the length classifier towards it."""
        order = random_order(len(self), self.shuffle)
        if self.mixed_lengths:
            return order
        return order[np.argsort(self.size(order)[0], kind="stable")]

    def filter_indices_by_size(self, indices, max_sizes):
        """Keep all: what is too long is cut, never dropped."""
        return indices, []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        source = torch.cat([torch.tensor([self.dictionary.bos()]), self.source[index].long()])
        item = {"id": index, "source": cut(source, self.limits.source)}
        if self.target is not None:
            item["target"] = self.target[index].long()
            item["cut_target"] = cut(item["target"], int(self.size(index)[1]))
        return item

    def collater(self, samples):
        """Make a batch: ``net_input`` holds the model's arguments, ``target`` the uncut references.

        *Shapes:* src_tokens (B, S), src_lengths (B), target_tokens (B, T), target_lengths and ids (B), and the flat
        positions to compute: src_index, target_index and mixed_index, the last over the width of ``mix_source``.
        """
        if not samples:
            return {}
        ids = torch.tensor([sample["id"] for sample in samples])
        src_tokens, src_lengths = self._pad(samples, "source")
        inputs = {"src_tokens": src_tokens, "src_lengths": src_lengths}
        batch: dict[str, Any] = {"id": ids, "nsentences": len(samples), "net_input": inputs, "target": None}
        batch["ntokens"] = int(src_lengths.sum())
        if self.target is not None:
            target_tokens, target_lengths = self._pad(samples, "cut_target")
            S, T, limit = src_tokens.shape[1], target_tokens.shape[1], self.limits.source
            # [SEP] after the pseudo target is there or not, depending on the prediction: leave room for it.
            mixed_lengths = (src_lengths + target_lengths + 1).clamp(max=limit)
            batch["ntokens"] = int(target_lengths.sum())
            batch["target"], _ = self._pad(samples, "target")
            inputs |= {
                "target_tokens": target_tokens,
                "target_lengths": target_lengths,
                "ids": ids,
                "src_index": real_positions(src_lengths, S),
                "target_index": real_positions(target_lengths, T),
                "mixed_index": real_positions(mixed_lengths, min(S + T + 1, limit)),
            }
        return batch

    def _pad(self, samples: list[dict], name: str) -> tuple[Tensor, Tensor]:
        """Tokens, padded, and lengths of one part of the samples."""
        rows = [sample[name] for sample in samples]
        return data_utils.collate_tokens(rows, self.dictionary.pad()), torch.tensor([len(row) for row in rows])
