"""The preparation scripts: whatever the files hold, an error that names one, or as many sources as targets."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from mist_fairseq.experiments.preparation import pair_files, published, squad_qg, xsum
from mist_fairseq.experiments.preparation import pairs as own_pairs
from mist_fairseq.experiments.preparation import quora as quora_pairs
from mist_fairseq.experiments.preparation.model_outputs import static_mix as mix
from mist_fairseq.experiments.preparation.pair_files import SIDES, SPLITS, PairFiles, read_lines
from tests.experiments.preparation import lines
from tests.fuzz import SEPARATOR, files, refuses, scratch

# Errors that are of no single file.
_OF_ALL = ("nothing usable in the input; skipped: ", "pairs in")


def _prepared(prepare: Callable[[PairFiles], None], paths: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Pairs by split, none if the input was refused as it should be."""
    out = scratch() / "out"
    try:
        with pair_files.data_folder(str(out), overwrite=True) as made:
            prepare(made)
    except (ValueError, OSError) as error:
        refuses(error, paths, *_OF_ALL)
        return {}
    counts = json.loads((out / "counts.json").read_text(encoding="utf-8"))
    found = {}
    for split in SPLITS:
        sources, targets = (lines(out / f"{split}.{side}") for side in SIDES)
        assert len(sources) == len(targets) == counts["kept"][split]
        assert all(sources) and all(targets)
        found[split] = list(zip(sources, targets))
    return found


def quora(data: bytes):
    """No question is in two splits."""
    paths = files(data, ["quora.tsv"])
    found = _prepared(lambda made: quora_pairs.prepare(made, paths[0], 3, 1, 1), paths)
    questions = [{text.casefold() for pair in pairs for text in pair} for pairs in found.values()]
    assert sum(map(len, questions)) == len(set().union(*questions))


def _check_answers(found: dict[str, list[tuple[str, str]]]):
    for source, _ in [pair for pairs in found.values() for pair in pairs]:
        answer, passage = source.split(" [SEP] ")
        assert answer and passage


def squad(data: bytes):
    """A source is an answer and a passage."""
    paths = files(data, ["squad-train.json", "squad-dev.json"])
    _check_answers(_prepared(lambda made: squad_qg.prepare(made, *paths), paths))


def squad_lists(data: bytes):
    """The same with lists of titles."""
    names = [f"doclist-{split}.txt" for split in ("train", "dev", "test")]
    paths = files(data, ["squad-train.json", "squad-dev.json", *names])
    _check_answers(_prepared(lambda made: squad_qg.prepare(made, *paths[:2], paths[2:]), paths))


def xsum_json_lines(data: bytes):
    """Three files of JSON lines."""
    paths = files(data, [f"xsum-{split}.json" for split in SPLITS])
    _prepared(lambda made: xsum.prepare_json_lines(made, paths), paths)


def xsum_documents(data: bytes):
    """A split file and two documents."""
    paths = files(data, ["split.json", "1.summary", "2.summary"])
    _prepared(lambda made: xsum.prepare_documents(made, str(Path(paths[0]).parent), paths[0]), paths)


def published_pairs(data: bytes):
    """JSON lines, for validation a file of sources and one of targets; all of them pieces."""
    paths = files(data, ["pairs-train.json", "pairs-valid.src", "pairs-valid.tgt", "pairs-test.json"])
    given = [paths[0], paths[1].removesuffix(".src"), paths[3]]
    _prepared(lambda made: published.prepare(made, given, pieces=True), paths)


def own_tables(data: bytes):
    """TSV, CSV and JSON lines, one after the other: no source is in two splits."""
    for path in files(data, ["own.tsv", "own.csv", "own.jsonl"]):
        columns = own_pairs.Columns(["a"], "b")
        found = _prepared(lambda made: own_pairs.prepare(made, path, columns, valid=1, test=1), [path])  # noqa: B023
        sources = [{source.casefold() for source, _ in pairs} for pairs in found.values()]
        assert sum(map(len, sources)) == len(set().union(*sources))


def static_mix(data: bytes):
    """Six files and as many pseudo targets as the seventh has lines; all lines come out as they went in."""
    names = [f"{split}.{side}" for split in SPLITS for side in SIDES]
    paths = files(data, [*names, "pseudo"])
    pseudo = Path(paths[-1]).read_bytes().decode("utf-8", errors="replace").split("\n")
    out = scratch() / "mixed"
    try:
        with pair_files.data_folder(str(out), overwrite=True) as made:
            mix(made, Path(paths[0]).parent, [[text] for text in pseudo])
    except (ValueError, OSError) as error:
        refuses(error, [*paths, str(Path(paths[0]).parent)], *_OF_ALL)
        return
    for split in SPLITS:
        sources, targets = ((out / f"{split}.{side}").read_bytes().split(b"\n") for side in SIDES)
        assert len(sources) == len(targets) == made.kept[split] + 1
    assert made.kept["train"] == 2 * len(pseudo)


def gzip_lines(data: bytes):
    """A .gz file is read to its end or refused."""
    (path,) = files(data, ["lines.gz"])
    try:
        found = "".join(read_lines(path))
    except ValueError as error:
        refuses(error, [path])
    else:
        assert found == gzip.decompress(data).decode("utf-8-sig", errors="replace")


def _question(text: str, answer: str, start: int) -> dict:
    return {"question": text, "answers": [{"text": answer, "answer_start": start}]}


def _article(title: str) -> dict:
    questions = [_question(f"When did {title}?", "1066", 3), _question("Who?", "they", 8)]
    return {"title": title, "paragraphs": [{"context": "In 1066 they came.", "qas": questions}]}


_TRAIN = json.dumps({"data": [_article("A"), _article("Beyonc\u00e9_K")], "version": "1.1"}).encode()
_DEV = json.dumps({"data": [_article("C")]}).encode()
_LISTS = [b"A\nC\n", b"Beyonc%C3%A9_K\r\n", b"Nobody"]
_TSV = b"".join(
    [
        b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n",
        *(f"{i}\t{i}1\t{i}2\tHow {i}?\tWhy {i}?\t1\n".encode() for i in range(5)),
        b'"7"\t"8"\t"9"\t"a ""b"""\t"c\nd"\t"1"\r\n1\t2\t3\tHow 1?\tno?\t0\n',
    ]
)
_RECORDS = b'{"document": "a\\nb", "summary": "s"}\n{"document": "c", "summary": "t [SEP]"}\n'
_LINES = b'{"src": "a [SEP] b ##c", "tgt": ["d", "##e"]}\n{"src": "f", "tgt": "g [UNK]"}\n'
_TABLES = [b"a\tb\nhow\twhy\nHow\tit\nwhat\tx y\nwho\tz\n", b'a,b\nhow,why\n"q ""b""","c\nd"\nwho,z\n']
_TABLES.append(b'{"a": "how", "b": "why"}\n{"a": "what", "b": "x"}\n{"a": "who", "b": "z"}\n')
_SPLIT = b'{"train": ["1"], "validation": ["2"], "test": ["1", 3]}'
_DOCUMENT = b"[SN]URL[SN]\nx\n\n[SN]FIRST-SENTENCE[SN]\nA summary.\n\n[SN]RESTBODY[SN]\nEmail\nAn article.\n"
_join = SEPARATOR.join
_ODD = [
    *(bytes([byte]) for byte in (0, 9, 10, 13, 27, 28, 34, 44, 92, 127, 133, 255)),
    *(b"\r\n", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"[SEP]"),
    *(b"[" * 2000, b"[" * 3000 + b"]" * 3000, b"9" * 5000, b"1e99999", b"NaN", b"null", b"[]", b"{}", b'""', b"-1"),
]
_KEYS = [b'"data"', b'"title"', b'"paragraphs"', b'"context"', b'"qas"', b'"question"', b'"answers"', b'"text"']
START = {
    "quora": ([_TSV], [b'"', b"\t", b"1\t2\t3\t", b"a?\tb?\t1\n", *_ODD]),
    # Python refuses whole numbers of 5,000 digits.
    "squad": (
        [_join([_TRAIN, _DEV]), _join([_TRAIN, _DEV.replace(b": 3", b": " + b"9" * 5000)])],
        [*_KEYS, SEPARATOR, *_ODD],
    ),
    "squad_lists": ([_join([_TRAIN, _DEV, *_LISTS])], [*_KEYS, SEPARATOR, b"%", b"%C3", b"_", *_ODD]),
    "xsum_json_lines": ([_join([_RECORDS] * 3)], [b'"document"', b'"summary"', SEPARATOR, *_ODD]),
    "xsum_documents": ([_join([_SPLIT, _DOCUMENT, _DOCUMENT])], [b"[SN]", b"\n[SN]A[SN]\n", SEPARATOR, *_ODD]),
    "published_pairs": (
        [_join([_LINES, b"a ##b\nc\n", b"d\r\ne [SEP] f", _LINES])],
        [b'"src"', b'"tgt"', b" ##", b'["', SEPARATOR, *_ODD],
    ),
    "own_tables": ([_join(_TABLES)], [b'"', b"\t", b",", b"a\tb\n", b'{"a": ', SEPARATOR, *_ODD]),
    "static_mix": ([_join([b"a\nb\n", b"c\nd", b"e\n", b"f\n", b"g", b"h", b"p\nq"])], [b"a\n", SEPARATOR, *_ODD]),
    "gzip_lines": ([gzip.compress(b"one\ntwo\r\nthree", mtime=0), b""], [b"\x1f\x8b\x08", *_ODD]),
}
