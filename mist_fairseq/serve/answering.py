"""From the texts of a request to the model and back."""

import asyncio
from dataclasses import dataclass, fields

from starlette.requests import ClientDisconnect, Request

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.generate.text_generator import Output, Source, TextGenerator
from mist_fairseq.serve.batching import Batcher
from mist_fairseq.serve.limits import Limits, flag
from mist_fairseq.serve.messages import GenerateRequest
from mist_fairseq.serve.middleware import client_leaves, unless

_QUICK = 10_000  # characters that are tokenized in a few milliseconds, for which the event loop can stand still


@dataclass
class Answerer:
    """Answers the texts of requests."""

    generator: TextGenerator
    limits: Limits
    batcher: Batcher

    async def read(self, body: GenerateRequest) -> tuple[list[Source], Decoding]:
        """What the model reads of a request; TypeError and ValueError name what cannot be answered."""
        decoding = body.make_decoding()
        if self._check_limits(body, decoding) <= _QUICK:
            return self._tokenize(body, decoding), decoding
        return await asyncio.to_thread(self._tokenize, body, decoding), decoding

    async def run(self, request: Request, sources: list[Source], decoding: Decoding) -> list[list[Output]]:
        """The outputs of each source; ClientDisconnect once nobody waits for them."""
        request.state.texts = len(sources)
        outputs = await unless(client_leaves(request), self.batcher.submit(sources, decoding))
        if outputs is None:
            raise ClientDisconnect
        return outputs

    def _check_limits(self, body: GenerateRequest, decoding: Decoding) -> int:
        """Check a request, and count its characters. A ``max_`` limit of an option holds for its default, too."""

        def within(what: str, value, limit: str):
            most = getattr(self.limits, limit, None)
            if most is not None and value is not None and value > most:
                raise ValueError(f"{what} is {value!r:.60}: at most {most} ({flag(limit)})")

        for given in (body, decoding):
            for each in fields(Decoding):
                within(each.name, getattr(given, each.name), f"max_{each.name}")
        texts = body.all_texts()
        within("the number of texts", len(texts), "max_texts")
        characters = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts]
        for i, number in enumerate(characters):
            within(f"the number of characters of texts[{i}]", number, "max_characters")
        return sum(characters)

    def _tokenize(self, body: GenerateRequest, decoding: Decoding) -> list[Source]:
        """The texts as tokens, of which none may be empty."""
        sources = list(self.generator.read(body.all_texts(), body.lengths, decoding))
        for i, source in enumerate(sources):
            if self.generator.is_empty(source):
                expected = "expected a text (white space and control characters do not count)"
                raise ValueError(f"texts[{i}] is empty, {expected}")
        return sources
