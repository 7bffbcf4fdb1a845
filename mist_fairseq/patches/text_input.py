r"""How fairseq's commands read text files, where the dictionary is one of ours: by ``mist_fairseq.text.lines``.

By itself fairseq ends a line at a lone \r, too, and does not say which file and line are not UTF-8.
"""

import gc
import io
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fairseq.binarizer import BinarizeSummary, FileBinarizer
from fairseq.data import indexed_dataset
from fairseq.data.indexed_dataset import IndexedRawTextDataset, data_file_path, index_file_path

from mist_fairseq.data.binarized import write_checksums
from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.patches import replaces
from mist_fairseq.text.lines import count_lines, decoded, lines_of_file

logger = logging.getLogger(__name__)


def install_interactive():
    """Replace ``buffered_read`` of fairseq-interactive, if that is what runs; called by tasks with our dictionaries.

    It and fairseq-generate print UTF-8, as they read it, whatever the locale's encoding is.
    """
    commands = ("fairseq_cli.interactive", "fairseq_cli.generate")
    for name in ("__main__", *commands):
        module: Any = sys.modules.get(name)
        command = getattr(getattr(module, "__spec__", None), "name", None)
        if command in commands and isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
            sys.stdout.reconfigure(encoding="utf-8")
        if command == commands[0]:
            module.buffered_read = _buffered_read


@replaces(FileBinarizer, "multiprocess_dataset")
def _multiprocess_dataset(
    fairseqs, input_file: str, dataset_impl: str, binarizer, output_prefix: str, vocab_size=None, num_workers=1
) -> BinarizeSummary:
    """Binarize a file as fairseq does, after counting its lines and, of a source, those of its target."""
    # A worker that fails or dies ends the command; fairseq would wait for a dead one.
    if not isinstance(getattr(binarizer, "dict", None), TokenizerDictionary):
        return fairseqs(input_file, dataset_impl, binarizer, output_prefix, vocab_size, num_workers)
    count = _check(input_file, output_prefix)
    size = -(-count // max(num_workers, 1))
    starts = range(0, count, size)
    binarize = partial(_binarize, binarizer, input_file, size, dataset_impl, vocab_size)
    summary = BinarizeSummary()
    builder = indexed_dataset.make_builder(data_file_path(output_prefix), impl=dataset_impl, vocab_size=vocab_size)
    gc.collect()  # or a worker may: an ONNX Runtime session would then wait for threads that a forked process lacks
    with TemporaryDirectory(dir=os.path.dirname(output_prefix)) as folder:
        prefixes = [os.path.join(folder, str(start)) for start in starts]
        with ProcessPoolExecutor(len(starts)) if num_workers > 1 else nullcontext() as pool:
            for one in (pool.map if pool else map)(binarize, starts, prefixes):
                summary.merge(one)
        for prefix in prefixes:
            builder.merge_file_(prefix)
    builder.finalize(index_file_path(output_prefix))
    write_checksums(output_prefix, binarizer.dict)
    return summary


def _check(path: str, output_prefix: str) -> int:
    """The number of lines of a file, which for a source must be that of its target."""
    lines = Counter(bool(line.strip()) for line in lines_of_file(path))
    count, blank = lines.total(), lines[False]
    if not count:
        raise ValueError(f"{path} is empty: expected at least one line")
    if blank:
        logger.warning("%s of the %s lines of %s are empty: they count as texts", f"{blank:,}", f"{count:,}", path)
    # Prefixes are FOLDER/SPLIT.SOURCE-TARGET.LANGUAGE, and sources come first.
    text, _, language = path.rpartition(".")
    _, is_source, target = output_prefix.removesuffix(f".{language}").rpartition(f".{language}-")
    other = f"{text}.{target}"
    if is_source and os.path.exists(other) and (others := count_lines(other)) != count:
        expected = "line i of one must belong to line i of the other"
        raise ValueError(f"{path} has {count:,} lines and {other} has {others:,}: {expected}")
    return count


def _binarize(binarizer, path, size, dataset_impl, vocab_size, start, output_prefix) -> BinarizeSummary:
    """Binarize *size* lines from line *start* on, counted from 0."""
    builder = indexed_dataset.make_builder(data_file_path(output_prefix), impl=dataset_impl, vocab_size=vocab_size)
    summary = BinarizeSummary()
    for line in islice(lines_of_file(path), start, start + size):
        builder.add_item(binarizer.binarize_line(line, summary))
    builder.finalize(index_file_path(output_prefix))
    return summary


@replaces(IndexedRawTextDataset, "read_data")
def _read_data(fairseqs, self, path: str, dictionary):
    """Read the text of ``--dataset-impl raw``."""
    if not isinstance(dictionary, TokenizerDictionary):
        fairseqs(self, path, dictionary)
        return
    self.lines = list(lines_of_file(path))
    options = {"append_eos": self.append_eos, "reverse_order": self.reverse_order}
    self.tokens_list = [dictionary.encode_line(line, **options).long() for line in self.lines]
    self.sizes = np.array([len(tokens) for tokens in self.tokens_list])


def _buffered_read(input: str, buffer_size: int) -> Iterator[list[str]]:
    """Give *buffer_size* lines of a file, or of stdin for ``-``, at a time, with the spaces around them."""
    lines = decoded(sys.stdin.buffer, "stdin") if input == "-" else lines_of_file(input)
    while buffer := list(islice(lines, max(buffer_size, 1))):
        yield buffer
