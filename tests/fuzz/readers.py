"""What reads files and requests elsewhere: BART's dictionary, printed output, logs, results, YAML, JSON."""

import asyncio
import json
import math
from functools import cache
from pathlib import Path

import httpx
from tokenizers.pre_tokenizers import ByteLevel

from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.experiments.benchmark.inputs import Entry, read_entries
from mist_fairseq.experiments.evaluation import read_generation
from mist_fairseq.experiments.report import Report
from mist_fairseq.experiments.training_log import TrainingLog, summary, table
from mist_fairseq.serve.app import create_app
from tests.fuzz import SEPARATOR, files, refuses, scratch
from tests.fuzz.dictionary import DEEP, TEXTS, check_tokenizer
from tests.serve.helpers import FakeGenerator

PAPER = Path(__file__).parents[2] / "results" / "paper.json"


def bart_dictionary(data: bytes):
    """Any three files are BART's dictionary or are refused; in fairseq's form it encodes and decodes, too."""
    paths = files(data, ["dict.txt", "encoder.json", "vocab.bpe"])
    try:
        dictionary = load_dictionary(paths[0])
    except (ValueError, FileNotFoundError) as error:
        refuses(error, paths)
        return
    check_tokenizer(dictionary.tokenizer, Path(paths[0]).with_name("saved.txt"))
    for text in TEXTS:
        ids = dictionary.encode_line(text)
        assert ids[-1] == dictionary.eos() and ids.tolist().count(dictionary.eos()) == text.count("[SEP]") + 1
        assert "\n" not in dictionary.string(ids)


def generation(data: bytes):
    """What fairseq-generate may print is sentences in order, or refused."""
    text = data.decode("utf-8", errors="replace")
    try:
        found = read_generation(text)
    except ValueError as error:
        refuses(error, [], "fairseq-generate printed")
        return
    assert len(found.outputs) == len(found.sources) and len(found.references) in (0, len(found.sources))
    printed = text.split("\n")
    for number, output in enumerate(found.outputs):
        assert any(line.startswith(f"D-{number}\t") and line.endswith(f"\t{output}") for line in printed)
        assert f"S-{number}\t{found.sources[number]}" in printed
    assert found.sentences_per_second is None or math.isfinite(found.sentences_per_second)


def training_log(data: bytes):
    """Logs have a curve of each score, or are refused."""
    paths = files(data, ["first.log", "second.log"])
    try:
        log = TrainingLog(paths)
    except ValueError as error:
        refuses(error, paths)
        return
    curves = []
    for metric in ("bleu", "loss"):
        try:
            curves.append(log.curve("run", metric))
        except ValueError as error:
            refuses(error, ["run"])
    for curve in curves:
        assert len(curve.updates) == len(curve.seconds) == len(curve.scores) > curve.best
        assert curve.updates == sorted(set(curve.updates))
        assert all(map(math.isfinite, curve.scores))
    if curves:
        try:
            assert len(table(summary(curves, "bleu"), "bleu").split("\n")) == 1 + len(curves)
        except ValueError as error:
            refuses(error, ["run"])


def result_files(data: bytes):
    """A report is made, or says which file is wrong."""
    names = ["latency-a.json", "runs/a.json", "latency/quora.json"]
    folder = scratch() / Path(names[0]).stem
    for name in ("runs", "latency"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "paper.json").write_bytes(PAPER.read_bytes())
    paths = files(data, names)
    for path in paths:  # files that need not be there
        if not Path(path).stat().st_size:
            Path(path).unlink()
    try:
        text = Report(folder).markdown()
    except ValueError as error:
        refuses(error, paths)
    else:
        assert text.startswith("# Results") and text.encode("utf-8")


def systems(data: bytes):
    """A YAML file lists systems, of the types that they should have, or is refused."""
    paths = files(data, ["systems.yaml"])
    try:
        entries, settings = read_entries(Path(paths[0]))
    except ValueError as error:
        refuses(error, paths, "system ", "a system's name")
        assert len(str(error)) < 3000
        return
    assert all(isinstance(entry, Entry) for entry in entries) and isinstance(settings, dict)
    assert all(type(entry.path) in (str, type(None)) and isinstance(entry.data, str) for entry in entries)


class _Server:
    """The application in an event loop of its own, without a socket."""

    def __init__(self):
        app, self.runner = create_app(FakeGenerator()), asyncio.Runner()
        self.lifespan = app.router.lifespan_context(app)
        self.runner.run(self.lifespan.__aenter__())
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def post(self, body: bytes) -> httpx.Response:
        return self.runner.run(
            self.client.post("/generate", content=body, headers={"content-type": "application/json"})
        )


_server = cache(_Server)  # ends with the process


def requests(data: bytes):
    """Whatever the body, the answer is JSON: as many outputs as texts, or what is wrong, in short."""
    answer = _server().post(data)
    content = json.loads(answer.content, parse_constant=_no_number)
    if answer.status_code == 200:
        body = json.loads(data)
        texts = [body["text"]] if body.get("text") is not None else body["texts"]
        assert len(content["outputs"]) == len(texts) and content["id"] == body.get("id")
    elif answer.status_code == 500:
        assert b"guitar" in data  # at which the model fails
    else:
        assert answer.status_code in (400, 413, 422), answer.status_code
        assert content.keys() == {"error"} and 0 < len(content["error"]) < 1500


_join = SEPARATOR.join


def _no_number(name):
    raise AssertionError(f"{name} is not JSON")


def _dump(content) -> bytes:
    return json.dumps(content).encode()


def _start_bart() -> list[bytes]:
    encoder = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    encoder["ho"] = 256
    symbols = "".join(f"{(7 * number) % 257} {300 - number}\n" for number in range(257))
    dictionary, merges = symbols.encode(), b"#version: 0.2\nh o\n"
    # After the first, what was no ValueError once, or one that named no file.
    odd = [[], {**encoder, "ho": 256.5}, {**encoder, "ho": -1}, {**encoder, "\u4e2d": 257}]
    return [
        _join([dictionary, _dump(encoder), merges]),
        *(_join([dictionary, _dump(each), merges]) for each in odd),
        _join([dictionary + b"no count\n", _dump(encoder), merges]),
        _join([dictionary, _dump(encoder), merges + b"\xff"]),
    ]


_ODD = [
    *(bytes([byte]) for byte in (0, 9, 10, 13, 28, 34, 92, 127, 133, 255)),
    *(b"\r\n", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000"),
    *(b"[" * 2000, DEEP, b"9" * 5000, b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"-1", b"0"),
]
_PRINTED = (
    b"INFO | loading\nS-1\tb\nT-1\tr\nH-1\t-0.5\tx\nD-1\t-0.5\tx\nD-1\t-0.9\ty\nS-0\t\nT-0\tq\nD-0\t-0.1\t\n"
    b"INFO | Translated 2 sentences (5 tokens) in 0.1s (20.50 sentences/s, 50.0 tokens/s)\n"
)
# What was no ValueError once, or one that did not tell what is wrong.
_PRINTED_ODDLY = [
    b"D-0\t",
    b"S-0\ta\nD-0\tb\n(1.0 sentences/s",
    b"(1.2.3 sentences/s",
    b"D-" + b"9" * 5000 + b"\t-1\ta",
]
_JSON_LOG = b"\n".join(
    [
        b'{"epoch": 1, "update": 0.1, "loss": "2", "num_updates": "20", "train_wall": "8", "wall": "9"}',
        b'{"epoch": 1, "valid_loss": "15.2", "valid_bleu": "1.5", "valid_num_updates": "20"}',
        b'{"epoch": 1, "loss": 2, "num_updates": 40, "train_wall": 8.5}',
        b'{"epoch": 1, "valid_loss": 14, "valid_bleu": 2, "valid_num_updates": 40}',
    ]
)
_SIMPLE_LOG = (
    b"epoch 001:     20 / 40 loss=2, num_updates=20, train_wall=30\n"
    b"epoch 001 | valid on 'valid' subset | loss 1 | bleu 7.25 | num_updates 20\n"
    b"INFO | Loaded checkpoint run/checkpoint_last.pt (epoch 1 @ 20 updates)"
)
_LOGGED_ODDLY = [
    _SIMPLE_LOG.replace(b"num_updates=20, train_wall=30", b"num_upd"),  # cut off
    _JSON_LOG.replace(b'"num_updates": "20"', b'"num_updates": "0"'),
    _JSON_LOG.replace(b'"2"', b"1" + b"0" * 400),
    b'{"epoch": ' + DEEP + b"}",
]
_RUN = {
    **dict(task="quora", arm="mist", init="MiniLM", weights="w (x)", data="d", updates="600", training="bash run.sh"),
    **dict(subset="test", command="python x", commit="abc", protocol="quora"),
}
_DECODING = {"decoding": "single-pass", "iterations": 1, "sentences_per_second": 9.5, "failed": {"bleu-2": "no"}}
_VALUES = {"values": {"bleu-1": 40.0, "rouge-l": 41}, "intervals": {"bleu-1": [39.0, 41.5]}}
_RUN["decodings"] = [{**_DECODING, **_VALUES}]
_SYSTEM = {"milliseconds": {"mean": 1.5, "median": 1, "p90": 2}, "speed_up": 1.0, "speed_up_interval": [0.9, 1.1]}
_LATENCY = {"device": "cpu", "threads": 2, "commit": "abc", "command": "python x"}
_LATENCY["runs"] = [{"batch_size": 1, "systems": {"Transformer": _SYSTEM, "MIST": _SYSTEM}}]
_RESULTS_ODDLY = [
    DEEP,
    _join([b"", _dump(_RUN | {"arm": ["mist"]})]),
    _join([b"", _dump(_RUN | {"decodings": [{**_DECODING, **_VALUES, "failed": {"bleu-4": {}}}]})]),
    _join([b"", _dump(_RUN | {"decodings": [{**_DECODING, "values": {"bleu-1": 10**400}}]})]),
    _dump(_LATENCY | {"runs": [{"batch_size": 1, "systems": {}}]}),
]
_YAML = (
    b"data: bin\nreference: test.tgt\nprotocol: quora\nsystems:\n"
    b"- {name: a, path: a.pt, group: AR, options: {beam: 4}}\n"
    b"- {name: b, arguments: --arch mist_base, data: other, precision: bf16, passes: {2: 0.5, 3: 0.5}}\n"
)
_ALIASES = b"data: &a0 [x]\nsystems:\n" + b"".join(b"- &a%d [*a%d, *a%d]\n" % (i + 1, i, i) for i in range(40))
_DEEP_YAML = b"[" * 400 + b"]" * 400  # much deeper ones take seconds
_SYSTEMS = {"data": "bin", "systems": [{"name": "a", "path": "a.pt", "engine": "fairseq", "options": {"beam": 4}}]}
_REQUESTS = [
    {"text": "how can you learn", "id": "mine"},
    {"texts": ["what is it", ["the best", "way"]], "decoding": "mist", "iterations": 2, "nbest": 2, "details": True},
    {"text": "who", "lengths": 3, "length_beam": 2, "min_length": 1, "max_length": 9, "keep_repeats": True, "id": 7},
]


START = {
    "bart_dictionary": (_start_bart(), [b" ", b"7 1\n", b"<mask> 1\n", b"#fairseq:overwrite", SEPARATOR, *_ODD]),
    "generation": (
        [_PRINTED, *_PRINTED_ODDLY],
        [b"S-0\t", b"D-0\t", b"D-0\t-0.1\t", b"T-1\t", b"(1.2.3 sentences/s", b"\n", *_ODD],
    ),
    "training_log": (
        [_JSON_LOG, _SIMPLE_LOG, _join([_JSON_LOG, _SIMPLE_LOG]), *_LOGGED_ODDLY],
        [b'"num_updates": ', b'"train_wall": ', b", ", b"=", b" | ", b'{"epoch": ', b"true", b"-5", *_ODD],
    ),
    "result_files": (
        [_join([b"", _dump(_RUN)]), _join(map(_dump, [_LATENCY, _RUN, _LATENCY])), *_RESULTS_ODDLY],
        [b'"decodings"', b'"values"', b"1e400", b"NaN", b"true", SEPARATOR, *_ODD],
    ),
    "systems": (
        [
            _YAML,
            _dump(_SYSTEMS),
            b"systems: [2024-13-45]",
            _DEEP_YAML,
            _dump(_SYSTEMS).replace(b'"a.pt"', b"[]"),
            _ALIASES,
        ],
        [
            *(
                b"&a ",
                b"*a",
                b"!!binary ",
                b"!!int ''",
                b"<<: ",
                b"!!python/object/apply:os.system [x]",
                b"2024-13-45",
                b"0b_",
                b"- ",
                b"? ",
            ),
            *(piece for piece in _ODD if len(piece) < 1000),
            _DEEP_YAML,
        ],
    ),
    "requests": (list(map(_dump, _REQUESTS)), [b'"text"', b'"texts"', b'"how"', b"true", b"1.5", b'"mist"', *_ODD]),
}
