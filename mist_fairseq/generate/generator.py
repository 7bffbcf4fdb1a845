"""Raw text in, readable text out: what a model's Python interfaces share. Needs neither torch nor fairseq.

``hub_interface.MistGenerator`` (PyTorch) and ``onnx_runtime.OnnxGenerator`` (neither torch nor fairseq) differ in how a
batch of token ids becomes hypotheses; texts, pairs, batches, order and results are the same, and are here.
"""

import itertools
import operator
import sys
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

from mist_fairseq.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import TypeIs

DECODINGS = ["single-pass", "mist", "mask-predict"]

# Of inputs whose number is not known, so many batches are read ahead and sorted by length.
_WINDOW = 16

Text = str | tuple[str, ...] | list[str]


@dataclass(frozen=True)
class Decoding:
    """How to generate; hashable, so that requests which agree can share a batch.

    Args:
        decoding: ``single-pass``, ``mist`` or ``mask-predict``.
        iterations: passes over the target (the tables' "Iter." column), by default 1 for single-pass, else 3.
        length_beam: decode this many of the likeliest lengths and order them by mean log-probability; by default
            *nbest*.
        nbest: hypotheses of each text; fewer where the bounds leave fewer lengths.
        min_length, max_length: bounds of the length, in tokens before the final [SEP]; no upper one but the model's.
        keep_repeats: leave directly repeated words in the output.

    Raises:
        ValueError: a value or a combination cannot work; names it.
    """

    decoding: str = "single-pass"
    iterations: int | None = None
    length_beam: int | None = None
    nbest: int = 1
    min_length: int = 1
    max_length: int | None = None
    keep_repeats: bool = False

    def __post_init__(self):
        if self.decoding not in DECODINGS:
            raise ValueError(f"decoding is {self.decoding!r}, expected one of {', '.join(DECODINGS)}")
        numbers = {"nbest": self.nbest, "min_length": self.min_length, "length_beam": self.width}
        numbers["iterations"] = self.passes
        if self.max_length is not None:
            numbers["max_length"] = self.max_length
        for name, value in numbers.items():
            object.__setattr__(self, name, _whole_number(name, value))
        if not isinstance(self.keep_repeats, bool):
            raise ValueError(f"keep_repeats is {self.keep_repeats!r}, expected True or False")
        if self.decoding == "single-pass" and self.passes > 1:
            raise ValueError(f"iterations {self.iterations} needs decoding mist or mask-predict")
        if self.nbest > self.width:
            raise ValueError(f"nbest {self.nbest} needs a length_beam of at least {self.nbest}, not {self.length_beam}")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(f"min_length {self.min_length} is more than max_length {self.max_length}")

    @property
    def passes(self) -> int:
        """How many passes over the target: *iterations*, or what the decoding usually has."""
        if self.iterations is None:
            return 1 if self.decoding == "single-pass" else 3
        return self.iterations

    @property
    def width(self) -> int:
        """How many lengths of each text are decoded: *length_beam*, or *nbest*."""
        return self.nbest if self.length_beam is None else self.length_beam


@dataclass
class Source:
    """What the model reads.

    Attributes:
        ids: ``[CLS] X [SEP]``.
        length: asked for, in tokens before the final [SEP]; None for the predicted one.
        cut: whether the text was longer than the model reads.
    """

    ids: list[int]
    length: int | None = None
    cut: bool = False


@dataclass
class Hypothesis:
    """One answer of a model, in token ids.

    Attributes:
        ids: without dropped repetitions; a final [SEP] may end them.
        scores: log-probability of each of *ids*.
        score: mean log-probability of all tokens, the final [SEP] and dropped repetitions counted.
        steps: passes over the target.
        history: ids after each pass.
    """

    ids: list[int]
    scores: list[float]
    score: float
    steps: int
    history: list[list[int]]


@dataclass
class Output:
    """One answer.

    Attributes:
        text: readable.
        score: mean log-probability of its tokens, the final [SEP] and dropped repetitions counted.
        tokens: as the vocabulary writes them.
        token_scores: log-probability of each token.
        steps: passes over the target; MIST stops when nothing changes any more.
        history: the text after each pass; the last one is *text*.
        length_scores: probability of each length, in tokens before the final [SEP] -> probability, likeliest first;
            empty where the length was given. The same for all answers to a text.
        cut: whether the input was longer than the model reads and lost its end.
    """

    text: str
    score: float = 0.0
    tokens: list[str] = field(default_factory=list)
    token_scores: list[float] = field(default_factory=list)
    steps: int = 0
    history: list[str] = field(default_factory=list)
    length_scores: dict[int, float] = field(default_factory=dict, repr=False)
    cut: bool = False


class TextGenerator:
    """A model and its tokenizer behind ``generate``; subclasses run the model.

    Args:
        tokenizer: of source and target.
        max_source, max_target: most tokens that the model reads and makes, special ones counted.
    """

    def _configure(self, tokenizer: Tokenizer, max_source: int, max_target: int):
        self.tokenizer = tokenizer
        self.max_source, self.max_target = max_source, max_target

    # -- given by the subclasses ----------------------------------------------------------------------------

    def _generate_batch(
        self, sources: list[Source], decoding: Decoding
    ) -> list[tuple[list[Hypothesis], dict[int, float]]]:
        """Of each source its hypotheses, best first, at least *nbest*, and ``Output.length_scores``.

        Sources have either all a length or none.
        """
        raise NotImplementedError

    # -- text to text ---------------------------------------------------------------------------------------

    def generate(
        self,
        texts: Iterable[Text],
        *,
        decoding: str | Decoding = "single-pass",
        iterations: int | None = None,
        nbest: int = 1,
        length_beam: int | None = None,
        lengths: int | Iterable[int | None] | None = None,
        min_length: int = 1,
        max_length: int | None = None,
        keep_repeats: bool = False,
        return_scores: bool = False,
        batch_size: int = 64,
        progress: bool | None = None,
    ) -> list | Iterator:
        """Generate for raw texts, in their order.

        A text is a string, or a tuple or list of strings that are read with [SEP] between them, for instance
        ``(answer, passage)``. ``[SEP]`` and the like in a string are plain text. What is longer than the model reads
        is cut. An empty text has an empty output.

        Args:
            texts: something with a length, such as a list, gives a list; anything else, such as a generator or an open
                file, an iterator, which reads *texts* as it goes and holds a bounded number of them.
            decoding: ``single-pass``, ``mist`` or ``mask-predict``; or a ``Decoding``, in place of the options here.
            iterations: passes over the target, by default 1 for single-pass, else 3.
            nbest: answers to each text, from a beam of lengths; more than one gives a list for each text, shorter where
                the bounds leave fewer lengths.
            length_beam: decode this many of the likeliest lengths, by default *nbest*.
            lengths: in tokens before the final [SEP], one for all texts or one for each, None for the predicted one.
            min_length, max_length: bounds of predicted lengths, in the same tokens.
            keep_repeats: leave directly repeated words in the output.
            return_scores: give an ``Output`` with scores, tokens, the text after each pass, in place of its text.
            batch_size: texts that are generated at once.
            progress: show a progress bar; by default for more than 1,000 texts, on a terminal. Needs tqdm.

        Returns:
            Texts, or ``Output`` with *return_scores*; lists of these with *nbest* above 1.

        Raises:
            TypeError: *texts* is a single string, or one of them neither text nor a pair; says which.
            ValueError: an option cannot work; names it.
        """
        if isinstance(texts, (str, bytes)) or not _is_iterable(texts):
            raise TypeError(f"texts is {_shown(texts)}: expected a list, or any other iterable, of strings or pairs")
        if not isinstance(decoding, Decoding):
            decoding = Decoding(decoding, iterations, length_beam, nbest, min_length, max_length, keep_repeats)
        batch_size = _whole_number("batch_size", batch_size)
        number = len(texts) if isinstance(texts, Sized) else None
        sources = self.read(texts, lengths, decoding)
        outputs: Iterator[Any] = self._outputs(sources, decoding, batch_size, return_scores)
        if not return_scores:
            outputs = ([output.text for output in ranked] for ranked in outputs)
        if decoding.nbest == 1:
            outputs = (ranked[0] for ranked in outputs)
        outputs = _with_progress(outputs, number, progress)
        return outputs if number is None else list(outputs)

    def encode(self, text: Text, length: int | None = None) -> Source:
        """``[CLS] X [SEP]`` of a text or of several, which [SEP] parts.

        Raises:
            TypeError: it is neither text nor a tuple or list of texts.
            ValueError: the model makes no output of *length*.
        """
        if length is not None:
            length = _whole_number("length", length, self.max_target - 1)
        parts = [text] if isinstance(text, str) else text
        if not isinstance(parts, (tuple, list)) or not parts or not all(isinstance(part, str) for part in parts):
            raise TypeError(f"{_shown(text)} is no text: expected a string, or a tuple of strings such as a pair")
        ids = [self.tokenizer.special.cls]
        for i, part in enumerate(parts):
            if i:
                ids.append(self.tokenizer.special.sep)
            ids += [index for _, index in self.tokenizer.encode(part)]
        ids.append(self.tokenizer.special.sep)
        if len(ids) <= self.max_source:
            return Source(ids, length)
        return Source([*ids[: self.max_source - 1], self.tokenizer.special.sep], length, cut=True)

    def is_empty(self, source: Source) -> bool:
        """Whether there is nothing to read, as of white space or control characters."""
        return all(index in (self.tokenizer.special.cls, self.tokenizer.special.sep) for index in source.ids)

    def read(
        self, texts: Iterable[Text], lengths: int | Iterable[int | None] | None, decoding: Decoding
    ) -> Iterator[Source]:
        """The sources of texts, one after the other; arguments and errors as of ``generate``, some only on the way."""
        if decoding.min_length >= self.max_target:
            raise ValueError(
                f"min_length {decoding.min_length} is too long: the model makes at most {self.max_target - 1} tokens "
                "and the final [SEP]"
            )
        if lengths is not None and decoding.width > 1:
            raise ValueError("lengths are given: there is none to choose for a length_beam or nbest above 1")
        if isinstance(lengths, (str, bytes)) or not (lengths is None or _is_whole(lengths) or _is_iterable(lengths)):
            raise ValueError(f"lengths is {_shown(lengths)}, expected a whole number, or one for each text")
        if not _is_iterable(lengths):
            return self._encode_all(iter(texts), itertools.repeat(lengths))
        if isinstance(lengths, Sized) and isinstance(texts, Sized) and len(lengths) != len(texts):
            raise ValueError(f"{len(lengths)} lengths for {len(texts)} texts: give one for each, or a single number")
        return self._encode_all(iter(texts), iter(lengths))

    def _encode_all(self, texts: Iterator[Text], lengths: Iterator[int | None]) -> Iterator[Source]:
        for i, text in enumerate(texts):
            try:
                yield self.encode(text, next(lengths))
            except (TypeError, ValueError) as error:
                raise type(error)(f"texts[{i}]: {error}") from error
            except StopIteration:
                raise ValueError(f"there are more texts than lengths, which end at {i}") from None

    def _outputs(
        self, sources: Iterator[Source], decoding: Decoding, batch_size: int, details: bool
    ) -> Iterator[list[Output]]:
        """Outputs in order; batches are of similar lengths, out of a window of sources."""
        while window := list(itertools.islice(sources, min(_WINDOW * batch_size, sys.maxsize))):
            found: dict[int, list[Output]] = {}
            by_length = sorted(range(len(window)), key=lambda i: (window[i].length is None, len(window[i].ids)))
            for _, group in itertools.groupby(by_length, key=lambda i: window[i].length is None):
                while batch := list(itertools.islice(group, min(batch_size, sys.maxsize))):
                    outputs = self.generate_sources([window[i] for i in batch], decoding, details)
                    found.update(zip(batch, outputs))
            yield from (found[i] for i in range(len(window)))

    def generate_sources(self, sources: list[Source], decoding: Decoding, details: bool = True) -> list[list[Output]]:
        """The *nbest* outputs of each source of one batch, best first.

        Args:
            sources: made by ``encode``; either all with a length or none.
            decoding: how to generate.
            details: give more than text and score.
        """
        wanted = [source for source in sources if not self.is_empty(source)]
        results = iter(self._generate_batch(wanted, decoding) if wanted else [])
        outputs = []
        for source in sources:
            if self.is_empty(source):
                outputs.append([Output("") for _ in range(decoding.nbest)])
                continue
            hypotheses, length_scores = next(results)
            ranked = [
                Output(self.tokenizer.decode(hypothesis.ids), hypothesis.score, steps=hypothesis.steps, cut=source.cut)
                for hypothesis in hypotheses[: decoding.nbest]
            ]
            if details:
                for output, hypothesis in zip(ranked, hypotheses):
                    self._describe(output, hypothesis)
                    output.length_scores = length_scores
            outputs.append(ranked)
        return outputs

    def _describe(self, output: Output, hypothesis: Hypothesis):
        """Set tokens, their scores and the text after each pass."""
        scored = zip(hypothesis.ids, hypothesis.scores)
        kept = [(index, score) for index, score in scored if index != self.tokenizer.special.sep]
        output.tokens = [self.tokenizer.symbols[index] for index, _ in kept]
        output.token_scores = [score for _, score in kept]
        output.history = [self.tokenizer.decode(ids) for ids in hypothesis.history]


def _is_whole(value) -> bool:
    """Whether it is a whole number, numpy's included, but no boolean."""
    return isinstance(value, SupportsIndex) and not isinstance(value, bool) and not _is_iterable(value)


def _is_iterable(value) -> "TypeIs[Iterable[Any]]":
    """numpy's scalars and arrays of no dimensions have the method, and raise."""
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _whole_number(name: str, value, most: int | None = None) -> int:
    if not _is_whole(value) or not 1 <= operator.index(value) <= (most or value):
        bounds = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} is {value!r}, expected a whole number {bounds}")
    return operator.index(value)


def _shown(value) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"


def _with_progress(outputs: Iterator, number: int | None, progress: bool | None) -> Iterator:
    if progress is None:
        progress = number is not None and number > 1000 and sys.stderr.isatty()
    if not progress:
        return outputs
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return outputs
    return iter(tqdm(outputs, total=number, unit=" texts"))
