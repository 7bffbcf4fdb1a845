"""SQuAD v1.1 as answer-aware question generation: ``answer [SEP] passage`` to the question."""

import random
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

from mist_fairseq.experiments.preparation.pair_files import (
    PairFiles,
    Skipped,
    one_line,
    progress,
    read_json,
    read_lines,
    text_of,
)
from mist_fairseq.text.tokenizer import SEP


def prepare(files: PairFiles, train: str, dev: str, split_lists: Sequence[str] = (), seed: int = 1):
    """Write one pair for every question with an answer, the first of its answers, in the official JSON files.

    With *split_lists*, as ``read_split_lists`` takes them (Du et al. 2017), articles go where their titles are listed.
    Without, *train* is for training, and *dev* is divided at random by *seed* into halves, the smaller for validation
    and the larger for testing (Zhou et al. 2017, Zhao et al. 2018). Pairs are drawn one by one, so that a passage may
    be in both.
    """
    if split_lists:
        listed = read_split_lists(split_lists)
        missing = set(listed)
        for article in chain(read_articles(train), read_articles(dev)):
            title = title_key(str(article.get("title")))
            missing.discard(title)
            if title not in listed:
                files.skipped["article in no list"] += 1
                continue
            for pair in read_pairs(article, files):
                files.add(listed[title], *pair)
        files.remarks.update(f"listed but in no file: {title}" for title in missing)
        return
    for article in read_articles(train):
        for pair in read_pairs(article, files):
            files.add("train", *pair)
    pairs = [pair for article in read_articles(dev) for pair in read_pairs(article, files)]
    is_test = [False] * (len(pairs) // 2) + [True] * (len(pairs) - len(pairs) // 2)
    random.Random(seed).shuffle(is_test)
    for pair, tests in zip(pairs, is_test):
        files.add("test" if tests else "valid", *pair)


def read_split_lists(paths: Sequence[str]) -> dict[str, str]:
    """Map every title, as ``title_key`` gives it, to the split in whose list it is.

    *paths* is a folder with doclist-{train,dev,test}.txt or three such files in this order, one title a line.
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
    """Return what all spellings of a title have in common: ``Beyonc%C3%A9_Knowles`` gives ``Beyoncé Knowles``."""
    return one_line(unicodedata.normalize("NFC", unquote(title)).replace("_", " "))


def read_articles(path: str) -> Iterator[dict]:
    """Yield the articles; a ValueError names a file that is truncated, not JSON, or without articles."""
    content = read_json(path)
    articles = content.get("data") if isinstance(content, dict) else None
    if not articles or not isinstance(articles, list):
        raise ValueError(f'{path} has no articles, expected SQuAD\'s {{"data": [{{"title": ..., "paragraphs": ...')
    for article in progress(articles, path, "articles"):
        yield article if isinstance(article, dict) else {}


def read_pairs(article: dict, files: PairFiles) -> Iterator[tuple[str, str]]:
    """Yield (source, target) of every usable question; count the others, and what is odd about the usable ones."""
    for paragraph in _list_in(article, "paragraphs", files):
        questions = _list_in(paragraph, "qas", files)
        context = paragraph.get("context") if questions else ""
        passage = one_line(context) if isinstance(context, str) else ""
        for question in questions:
            with files.skipping():
                yield _pair(context, passage, question, files)


def _list_in(record, key: str, files: PairFiles) -> list:
    entries = record.get(key) if isinstance(record, dict) else None
    if isinstance(entries, list):
        return entries
    files.skipped[f"no list of {key}"] += 1
    return []


def _pair(context: str, passage: str, question, files: PairFiles) -> tuple[str, str]:
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
        files.remarks["answer offset does not match"] += 1
    return f"{one_line(text)} {SEP} {passage}", target
