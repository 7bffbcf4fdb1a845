"""SQuAD v1.1 as answer-aware question generation: ``answer [SEP] passage`` to the question."""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote

import ijson

from mist_fairseq.experiments.preparation.files import (
    PairFiles,
    Skipped,
    one_line,
    open_text,
    progress,
    read_lines,
    text_of,
)
from mist_fairseq.text.tokenizer import SEP


def prepare(files: PairFiles, train: str, dev: str, split_lists: Sequence[str] = (), seed: int = 1):
    """Write one pair for every question with an answer, the first of its answers; one article is in memory at a time.

    Args:
        files: where to.
        train, dev: the official JSON files.
        split_lists: a folder with Du et al. 2017's doclist-{train,dev,test}.txt, or three such files in this order:
            the articles of both JSON files go where their titles are listed. Without, the setting of Zhao et al.
            2018: *train* is for training, and the pairs of *dev* are divided at random into halves, the smaller
            for validation and the larger for testing. Pairs are drawn one by one, so a passage may be in both.
        seed: of the random halves.
    """
    if split_lists:
        _prepare_by_title(files, (train, dev), read_split_lists(split_lists))
    else:
        _prepare_halves(files, train, dev, seed)


def _prepare_by_title(files: PairFiles, paths: Sequence[str], listed: dict[str, str]):
    missing = set(listed)
    for path in paths:
        for article in read_articles(path):
            title = title_key(str(article.get("title")))
            missing.discard(title)
            if title not in listed:
                files.skipped["article in no list"] += 1
                continue
            for pair in read_pairs(article, files.skipped, files.remarks):
                files.add(listed[title], *pair)
    files.remarks.update(f"listed but in no file: {title}" for title in missing)


def _prepare_halves(files: PairFiles, train: str, dev: str, seed: int):
    total = sum(1 for article in read_articles(dev) for _ in read_pairs(article, Counter(), Counter()))
    is_test = bytearray(total // 2) + bytearray(b"\1" * (total - total // 2))
    random.Random(seed).shuffle(is_test)
    for article in read_articles(train):
        for pair in read_pairs(article, files.skipped, files.remarks):
            files.add("train", *pair)
    halves = iter(is_test)
    for article in read_articles(dev):
        for pair in read_pairs(article, files.skipped, files.remarks):
            files.add("test" if next(halves) else "valid", *pair)


def read_split_lists(paths: Sequence[str]) -> dict[str, str]:
    """Map every listed title, as ``title_key`` gives it, to train, valid or test.

    Raises:
        ValueError: there is neither one folder nor three files, or a title is in two lists.
    """
    if len(paths) == 1:
        paths = [str(Path(paths[0]) / f"doclist-{name}.txt") for name in ("train", "dev", "test")]
    if len(paths) != 3:
        raise ValueError(f"--split-lists got {len(paths)} paths, expected one folder or three files: train, dev, test")
    listed: dict[str, str] = {}
    for split, path in zip(("train", "valid", "test"), paths):
        for line in read_lines(path):
            title = title_key(line)
            if title and listed.setdefault(title, split) != split:
                raise ValueError(f"{path} lists {title!r}, which an earlier list has too: remove it from one of them")
    return listed


def title_key(title: str) -> str:
    """What all spellings of a title have in common: ``Beyonc%C3%A9_Knowles`` gives ``Beyoncé Knowles``."""
    return one_line(unicodedata.normalize("NFC", unquote(title)).replace("_", " "))


class _Bytes:
    """ijson wants bytes; here they are valid UTF-8 whatever the file holds."""

    def __init__(self, file: TextIO):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size).encode("utf-8")


def read_articles(path: str) -> Iterator[dict]:
    """Yield the articles one at a time.

    Raises:
        ValueError: the file is truncated, not JSON, or without articles.
    """
    number = 0
    with open_text(path) as file:
        try:
            # use_float: ijson's C code crashes on whole numbers of more digits than Python converts.
            items = ijson.items(_Bytes(file), "data.item", use_float=True)
            for article in progress(items, path, "articles"):
                number += 1
                yield article if isinstance(article, dict) else {}
        except ijson.JSONError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path} is truncated or not JSON, after {number} articles: {reason}") from error
    if not number:
        raise ValueError(f'{path} has no articles, expected SQuAD\'s {{"data": [{{"title": ..., "paragraphs": ...')


def read_pairs(article: dict, skipped: Counter, remarks: Counter) -> Iterator[tuple[str, str]]:
    """Yield (source, target) of every usable question; count the others, and what is odd about the usable ones."""
    for paragraph in _list_in(article, "paragraphs", skipped):
        questions = _list_in(paragraph, "qas", skipped)
        context = paragraph.get("context") if questions else ""
        passage = one_line(context) if isinstance(context, str) else ""
        for question in questions:
            try:
                yield _pair(context, passage, question, remarks)
            except Skipped as reason:
                skipped[str(reason)] += 1


def _list_in(record, key: str, skipped: Counter) -> list:
    entries = record.get(key) if isinstance(record, dict) else None
    if isinstance(entries, list):
        return entries
    skipped[f"no list of {key}"] += 1
    return []


def _pair(context: str, passage: str, question, remarks: Counter) -> tuple[str, str]:
    if not passage:
        raise Skipped("empty passage")
    if not isinstance(question, dict):
        raise Skipped("malformed question")
    target = text_of(question.get("question"), "question")
    answers = question.get("answers")
    answer = answers[0] if isinstance(answers, list) and answers and isinstance(answers[0], dict) else {}
    text = answer.get("text")
    if question.get("is_impossible") or not isinstance(text, str) or not one_line(text):
        raise Skipped("no answer")
    if text not in context:
        raise Skipped("answer not in the passage")
    start = answer.get("answer_start")
    if not isinstance(start, int) or not context.startswith(text, start):
        remarks["answer offset does not match"] += 1
    return f"{one_line(text)} {SEP} {passage}", target
