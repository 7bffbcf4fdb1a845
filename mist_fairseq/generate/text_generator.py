"""Raw text in, readable text out: what the generators of ``hub`` share. Needs neither torch nor fairseq."""

import asyncio
import itertools
import logging
import math
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeGuard, Unpack, overload

import numpy as np

from mist_fairseq.generate.answers import Answers, answer, too_few
from mist_fairseq.generate.constraints import constraints_of
from mist_fairseq.generate.decoding import (
    Decoding,
    DecodingOptions,
    Engine,
    check_head,
    real_number,
    whole_number,
)
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.text.tokenizer import Tokenizer
from mist_fairseq.text.truecase import truecase

logger = logging.getLogger(__name__)

# Of inputs whose number is not known, so many batches are read ahead and sorted by length.
_WINDOW = 16

Text = str | tuple[str, ...] | list[str]
Lengths = float | Iterable[float | None] | None
Yes = Literal[True]
No = Literal[False]
One = Literal[1]


class Options(DecodingOptions, total=False):
    """The keyword arguments of ``generate`` that do not change its type."""

    decoding: str | Decoding
    lengths: Lengths
    batch_size: int
    progress: bool | None


@dataclass
class Source:
    """What the model reads."""

    ids: list[int]  #: ``[CLS] X [SEP]``
    length: int | None = None  #: asked for, in words or tokens before the final [SEP]; None for the predicted one
    cut: bool = False  #: whether the text was longer than the model reads
    texts: tuple[str, ...] = ()  #: what was encoded


@dataclass
class Output:
    """One answer.

    Attributes:
        text: readable.
        score: log-probability of its length, unless that was given, plus the mean of its tokens', the final [SEP] and
            dropped repetitions counted; -inf for an empty answer that stands for none.
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
    """A model and its tokenizer behind ``generate``; a subclass sets its attributes."""

    tokenizer: Tokenizer  #: of source and target
    limits: PositionLimits  #: the most tokens that the model reads and makes, special ones counted
    engine: Engine  #: what runs the model
    stop_unchanged = True  #: MIST ends for a sentence that a pass did not change; a benchmark may want all passes

    # One text gives one answer, a list a list, an iterator an iterator; of texts, or of Outputs.
    @overload
    def generate(  # type: ignore[overload-overlap] # a string is a sequence of strings, too
        self, texts: str, *, return_scores: No = ..., nbest: One = ..., **options: Unpack[Options]
    ) -> str: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, texts: str, *, return_scores: Yes, nbest: One = ..., **options: Unpack[Options]
    ) -> Output: ...
    @overload
    def generate(
        self, texts: Sequence[Text], *, return_scores: No = ..., nbest: One = ..., **options: Unpack[Options]
    ) -> list[str]: ...
    @overload
    def generate(
        self, texts: Sequence[Text], *, return_scores: Yes, nbest: One = ..., **options: Unpack[Options]
    ) -> list[Output]: ...
    @overload
    def generate(
        self, texts: Iterator[Text], *, return_scores: No = ..., nbest: One = ..., **options: Unpack[Options]
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self, texts: Iterator[Text], *, return_scores: Yes, nbest: One = ..., **options: Unpack[Options]
    ) -> Iterator[Output]: ...
    @overload
    def generate(
        self, texts: Iterable[Text], *, return_scores: bool = ..., nbest: int = ..., **options: Unpack[Options]
    ) -> Any: ...

    def generate(
        self,
        texts: Iterable[Text],
        *,
        decoding: str | Decoding = "single-pass",
        nbest: int = 1,
        lengths: Lengths = None,
        return_scores: bool = False,
        batch_size: int = 64,
        progress: bool | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Any:
        """Generate for a raw text, or for several, in their order.

        A text is a string, or a tuple or list of strings that are read with [SEP] between them, for instance
        ``(answer, passage)``. ``[SEP]`` and the like in a string are plain text. What is longer than the model reads
        is cut, and a warning logged at the end of the first call with such a text. An empty text has an empty output.

        Args:
            texts: a string gives what a list of it alone has in it. Something with a length, such as a list or a tuple,
                is several texts and gives a list: a single pair stands in one, ``[(answer, passage)]``. Anything else,
                such as a generator or an open file, gives an iterator, which reads *texts* as it goes and holds a
                bounded number of them.
            decoding: ``single-pass``, ``mist``, ``mask-predict``, ``mask-repeats``; or a ``Decoding``, in place of the
                options here.
            nbest: answers to each text; more than one gives a list for each text, shorter where the lengths within the
                bounds give no more.
            lengths: one for all texts or one for each, None for the predicted one; in tokens before the final [SEP], or
                in what ``length_unit`` says.
            return_scores: give an ``Output`` with scores, tokens, the text after each pass, in place of its text.
            batch_size: texts that are generated at once.
            progress: show a progress bar; by default for more than 1,000 texts, on a terminal. Needs tqdm.
            options: the other fields of ``Decoding``, by name.

        Returns:
            Texts, or ``Output`` with *return_scores*; lists of these with *nbest* above 1.

        Raises:
            TypeError: *texts* or one of them is neither text nor a pair, or there is no such option; says which.
            ValueError: an option cannot work; names it.
        """
        # The keys of a mapping, the columns of a table and a set, which has no order, would pass for texts.
        no_texts = isinstance(texts, bytes | Mapping | set | frozenset) or getattr(texts, "ndim", 1) != 1
        if no_texts or not _is_iterable(texts):
            raise TypeError(
                f"texts is {_shown(texts)}: expected a string, or a list or any other iterable of strings or pairs"
            )
        if unknown := options.keys() - DecodingOptions.__annotations__:
            known = ", ".join(Options.__annotations__ | DecodingOptions.__annotations__)
            raise TypeError(
                f"generate has no option {', '.join(sorted(unknown))}: there are nbest, return_scores, {known}"
            )
        if not isinstance(decoding, Decoding):
            decoding = Decoding(decoding, nbest=nbest, **options)
        batch_size = whole_number("batch_size", batch_size)
        if is_one := isinstance(texts, str):
            texts = [texts]
        number = len(texts) if isinstance(texts, Sized) else None
        outputs: Iterator[Any] = self._outputs(self.read(texts, lengths, decoding), decoding, batch_size, return_scores)
        if decoding.nbest == 1:
            outputs = (ranked or [Output("", -math.inf)] for ranked in outputs)
        if not return_scores:
            outputs = ([output.text for output in ranked] for ranked in outputs)
        if decoding.nbest == 1:
            outputs = (ranked[0] for ranked in outputs)
        outputs = _with_progress(outputs, number, progress)
        if number is None:
            return outputs
        answers = list(outputs)
        return answers[0] if is_one else answers

    __call__ = generate

    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, texts: str, *, return_scores: No = ..., nbest: One = ..., **options: Unpack[Options]
    ) -> str: ...
    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, texts: str, *, return_scores: Yes, nbest: One = ..., **options: Unpack[Options]
    ) -> Output: ...
    @overload
    async def agenerate(
        self, texts: Sequence[Text], *, return_scores: No = ..., nbest: One = ..., **options: Unpack[Options]
    ) -> list[str]: ...
    @overload
    async def agenerate(
        self, texts: Sequence[Text], *, return_scores: Yes, nbest: One = ..., **options: Unpack[Options]
    ) -> list[Output]: ...
    @overload
    async def agenerate(
        self, texts: Iterable[Text], *, return_scores: bool = ..., nbest: int = ..., **options: Unpack[Options]
    ) -> Any: ...

    async def agenerate(self, texts: Iterable[Text], **options: Any) -> Any:
        """``generate`` for asyncio: in a thread of the generator's own, which runs one call after the other.

        Arguments and errors are those of ``generate``, and so is the result, but for an asynchronous iterator in place
        of an iterator. A call that waits can be cancelled; one that runs ends by itself, and the next waits for it.
        """

        def run(work: Any, *given: Any) -> Any:
            return asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

        async def each(outputs: Iterator[Any]) -> AsyncIterator[Any]:
            while (output := await run(next, outputs, None)) is not None:
                yield output

        answers = await run(partial(self.generate, texts, **options))
        return each(answers) if isinstance(answers, Iterator) else answers

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "agenerate")

    def encode(self, text: Text, length: float | None = None, unit: str = "tokens") -> Source:
        """``[CLS] X [SEP]`` of a text or of several, which [SEP] parts; *length* is in one of ``UNITS``.

        TypeError: it is neither text nor a tuple or list of texts. ValueError: the model makes no output of *length*.
        """
        parts = [text] if isinstance(text, str) else text
        if not isinstance(parts, tuple | list) or not parts or not all(isinstance(part, str) for part in parts):
            raise TypeError(f"{_shown(text)} is no text: expected a string, or a tuple of strings such as a pair")
        special = self.tokenizer.special
        ids = [special.cls]
        for part in parts:
            ids += [*(token for _, token in self.tokenizer.encode(part)), special.sep]
        if cut := len(ids) > self.limits.source:
            ids = [*ids[: self.limits.source - 1], special.sep]
        number, most = None, self.limits.target - 1 - (self.engine.graph is not None)
        if length is not None and unit == "source":
            share = real_number("length", length, least=0.0)
            number = max(1, min(round(share * (len(ids) - 1 - len(parts))), most))
        elif length is not None:
            number = whole_number("length", length, most)
        return Source(ids, number, cut, tuple(parts))

    def read(self, texts: Iterable[Text], lengths: Lengths, decoding: Decoding) -> Iterator[Source]:
        """The sources of texts, one after the other; arguments and errors as of ``generate``, some only on the way."""
        unit = decoding.length_unit
        one = SupportsFloat if unit == "source" else SupportsIndex
        check_head(decoding, self.engine.graph, self.limits, isinstance(lengths, one))
        rules = constraints_of(self.tokenizer, decoding)
        if rules is not None and rules.room >= self.limits.target:
            makes = f"the {self.limits.target - 1} that the model makes"
            raise ValueError(f"required takes {rules.room} tokens, more than {makes}: leave some out")
        if self.engine.graph is None:
            self._warn_once("nbest", too_few(decoding, self.limits))
        if lengths is not None and unit != "words" and decoding.width > 1 and not decoding.branches:
            raise ValueError("lengths are given: there is none to choose for a length_beam or nbest above 1")
        if isinstance(lengths, str | bytes | bool) or not isinstance(lengths, Iterable | one | None):
            kind = "number" if unit == "source" else "whole number"
            raise ValueError(f"lengths is {_shown(lengths)}, expected a {kind}, or one for each text")
        if not _is_iterable(lengths):
            return self._encode_all(iter(texts), itertools.repeat(lengths), unit)
        if isinstance(lengths, Sized) and isinstance(texts, Sized) and len(lengths) != len(texts):
            raise ValueError(f"{len(lengths)} lengths for {len(texts)} texts: give one for each, or a single number")
        return self._encode_all(iter(texts), iter(lengths), unit)

    def _encode_all(self, texts: Iterator[Text], lengths: Iterator[Any], unit: str) -> Iterator[Source]:
        for i, text in enumerate(texts):
            try:
                yield self.encode(text, next(lengths), unit)
            except (TypeError, ValueError) as error:
                raise type(error)(f"texts[{i}]: {error}") from error
            except StopIteration:
                raise ValueError(f"there are more texts than lengths, which end at {i}") from None

    def _outputs(
        self, sources: Iterator[Source], decoding: Decoding, batch_size: int, details: bool
    ) -> Iterator[list[Output]]:
        """Outputs in order; batches are of similar lengths, out of a window of sources."""
        number = cut = 0
        try:
            while window := list(itertools.islice(sources, min(_WINDOW * batch_size, sys.maxsize))):
                number, cut = number + len(window), cut + sum(source.cut for source in window)
                outputs: dict[int, list[Output]] = {}
                by_length = sorted(range(len(window)), key=lambda i: (window[i].length is None, len(window[i].ids)))
                for _, group in itertools.groupby(by_length, key=lambda i: window[i].length is None):
                    while batch := list(itertools.islice(group, min(batch_size, sys.maxsize))):
                        outputs.update(zip(batch, self.generate_sources([window[i] for i in batch], decoding, details)))
                yield from (outputs[i] for i in range(len(window)))
        finally:
            if cut:
                longer = f"{cut:,} of {number:,} texts are longer than the {self.limits.source} tokens that the model"
                advice = "shorten or split them; return_scores tells which (Output.cut). Later ones are not reported"
                self._warn_once("cut", f"{longer} reads, and lost their ends: {advice}")

    def generate_sources(self, sources: list[Source], decoding: Decoding, details: bool = True) -> list[list[Output]]:
        """The *nbest* outputs of each source of one batch, best first; without *details* only with text and score.

        *sources* are made by ``encode``, either all with a length or none; that is in words where the ``length_unit``
        of *decoding* is, else in tokens. ValueError: one or its length is too long.
        """
        wanted = [source for source in sources if not self.is_empty(source)]
        results = iter(self._generate_batch(wanted, decoding, details) if wanted else [])
        return [[Output("")] if self.is_empty(source) else next(results) for source in sources]

    @cached_property
    def _warned(self) -> set[str]:
        return set()

    def _warn_once(self, reason: str, message: str) -> None:
        """Log a message, unless it is empty or there was one for this reason before."""
        if message and reason not in self._warned:
            self._warned.add(reason)
            logger.warning("%s", message)

    def is_empty(self, source: Source) -> bool:
        """Whether there is nothing to read, as of white space or control characters."""
        return {self.tokenizer.special.cls, self.tokenizer.special.sep}.issuperset(source.ids)

    def _generate_batch(self, sources: list[Source], decoding: Decoding, details: bool) -> list[list[Output]]:
        lengths = [len(source.ids) for source in sources]
        if max(lengths) > self.limits.source:
            raise ValueError(f"a source has {max(lengths)} tokens, more than the model's {self.limits.source}")
        longest = max(source.length or 0 for source in sources)
        if longest >= self.limits.target:
            raise ValueError(f"a length is {longest}, expected at most {self.limits.target - 1}")
        tokens = np.full((len(sources), max(lengths)), self.tokenizer.special.pad)
        for row, source in zip(tokens, sources):
            row[: len(source.ids)] = source.ids
        engine, asked, words = self.engine, None, None
        if sources[0].length is not None and decoding.length_unit == "words":
            words = [source.length or 0 for source in sources]
        elif sources[0].length is not None:
            asked = engine.asarray(np.array([(source.length or 0) + 1 for source in sources]))
        inputs = engine.asarray(tokens), engine.asarray(np.array(lengths))
        answered = answer(
            *(engine, *inputs, decoding, self.tokenizer, self.limits),
            target_lengths=asked,
            words=words,
            stop_unchanged=self.stop_unchanged,
            history=details,
        )
        return [self._outputs_of(one, source, decoding, details) for one, source in zip(answered, sources)]

    def _outputs_of(self, answers: Answers, source: Source, decoding: Decoding, details: bool) -> list[Output]:
        """The outputs of a source, best first."""
        symbols, sep = self.tokenizer.symbols, self.tokenizer.special.sep

        def decode(ids: list[int]) -> str:
            text = self.tokenizer.decode(ids)
            return truecase(text, *source.texts) if decoding.truecase else text

        shares = enumerate(answers.length_shares, start=decoding.min_length) if details else ()
        length_scores = dict(sorted(shares, key=lambda share: -share[1]))
        outputs = []
        for one in answers.best:
            made = Output(decode(one.tokens), one.score, steps=one.steps, length_scores=length_scores, cut=source.cut)
            if details:
                shown = [i for i, token in enumerate(one.tokens) if token != sep]
                made.tokens = [symbols[one.tokens[i]] for i in shown]
                made.token_scores = [one.token_scores[i] for i in shown]
                made.history = list(map(decode, one.history))
            outputs.append(made)
        return outputs


def _is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """numpy's scalars and arrays of no dimensions have the method, and raise."""
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"


def _with_progress(outputs: Iterator[Any], number: int | None, progress: bool | None) -> Iterator[Any]:
    if progress is None:
        progress = number is not None and number > 1000 and sys.stderr.isatty()
    if not progress:
        return outputs
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return outputs
    return iter(tqdm(outputs, total=number, unit=" texts"))
