"""The web application: a page, ``/generate``, ``/health`` and ``/metrics``."""

import asyncio
import base64
import contextlib
import hashlib
import importlib.resources
import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

import mist_fairseq
from mist_fairseq.generate.generator import Decoding, Source, TextGenerator
from mist_fairseq.serve.batching import Batcher, ModelError, Unavailable
from mist_fairseq.serve.limits import Limits, option
from mist_fairseq.serve.messages import (
    Error,
    GenerateRequest,
    GenerateResponse,
    answer,
    explain,
    shortened,
    shown,
    unreadable,
)
from mist_fairseq.serve.metrics import Metrics
from mist_fairseq.serve.middleware import CLIENT_LEFT, RETRY, Body, Outermost, error, unless_client_leaves

_QUICK = 10_000  # characters that are tokenized in a few milliseconds, for which the event loop can stand still


def create_app(generator: TextGenerator, limits: Limits | None = None) -> FastAPI:
    """An ASGI application. ``app.state.batcher`` is its ``Batcher``.

    Args:
        generator: answers. The model is called in one thread, the tokenizer in several.
        limits: what requests may ask for.
    """
    limits = limits or Limits()
    metrics = Metrics(lambda: len(batcher), lambda: batcher.running)
    batcher = Batcher(
        generator.generate_sources,
        max_batch=limits.max_batch,
        max_wait=limits.max_wait / 1000,
        max_queue=limits.max_queue,
        observe=metrics.batch,
    )
    page = importlib.resources.files("mist_fairseq.serve").joinpath("page.html").read_text(encoding="utf-8")

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with batcher:
            yield

    # FastAPI's own /docs loads scripts from elsewhere.
    app = FastAPI(
        title="MIST",
        version=mist_fairseq.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # they would go to whatever host the client names
    )
    app.state.batcher = batcher

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"model": Error}})
    async def health():
        """200 while requests are taken, 503 while the server is shutting down."""
        if batcher.closing:
            return error(503, "the server is shutting down", **RETRY)
        return {"status": "ok"}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.post(
        "/generate",
        response_model=GenerateResponse,
        responses={status: {"model": Error} for status in (400, 408, 413, 415, 422, 500, 503)},
    )
    async def generate(body: GenerateRequest, request: Request):
        """Generate for one text or several."""
        texts = body.all_texts()
        characters = check(body, limits)
        if characters <= _QUICK:
            sources, decoding = read(body, generator)
        else:
            sources, decoding = await asyncio.to_thread(read, body, generator)
        outputs = await unless_client_leaves(request, batcher.submit(sources, decoding))
        if outputs is None:
            return Response(status_code=CLIENT_LEFT)
        metrics.generated(len(texts))
        found = [[answer(output, body.details) for output in ranked] for ranked in outputs]
        return JSONResponse({"id": body.id, "outputs": found})

    _answer_errors(app)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(Body, path="/generate", limits=limits, batcher=batcher)
    app.add_middleware(Outermost, metrics=metrics, paths=paths, policy=_policy(page), batcher=batcher)
    return app


def _answer_errors(app: FastAPI):
    """Make every error an answer of the same form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_, problem: RequestValidationError) -> Response:
        return error(*explain(problem))

    @app.exception_handler(HTTPException)
    async def refused(_, problem: HTTPException) -> Response:
        # FastAPI's own one says of a body only that there was an error.
        message = unreadable(problem.__cause__) if problem.status_code == 400 else problem.detail
        return error(problem.status_code, message, **(problem.headers or {}))

    @app.exception_handler(Unavailable)
    async def unavailable(_, problem: Unavailable) -> Response:
        return error(503, str(problem), **RETRY)

    @app.exception_handler(ModelError)
    async def failed(_, problem: ModelError) -> Response:
        return error(500, str(problem))

    @app.exception_handler(Exception)
    async def broken(*_) -> Response:
        return error(500, "an error inside the server; its log says which")


def check(body: GenerateRequest, limits: Limits) -> int:
    """The characters of all texts together.

    Raises:
        HTTPException: a value is over its limit, or a text is empty; says which.
    """

    def within(what: str, value: int | None, limit: str):
        if value is not None and value > getattr(limits, limit):
            raise HTTPException(422, f"{what} {shown(value)}: at most {getattr(limits, limit)} ({option(limit)})")

    texts = body.all_texts()
    if not texts:
        raise HTTPException(422, "texts is empty, expected at least one text")
    within("the number of texts is", len(texts), "max_texts")
    total = 0
    for i, text in enumerate(texts):
        parts = [text] if isinstance(text, str) else text
        if not any(part.strip() for part in parts):
            raise HTTPException(422, f"{body.name(i)} is empty, expected a text")
        characters = sum(map(len, parts))
        within(f"the number of characters of {body.name(i)} is", characters, "max_characters")
        total += characters
    within("iterations is", body.iterations, "max_iterations")
    within("nbest is", body.nbest, "max_nbest")
    within("length_beam is", body.length_beam, "max_length_beam")
    return total


def read(body: GenerateRequest, generator: TextGenerator) -> tuple[list[Source], Decoding]:
    """What the model gets.

    Raises:
        HTTPException: a value cannot work, or a text has nothing that a tokenizer keeps; says which.
    """
    texts = body.all_texts()
    try:
        decoding = Decoding(
            body.decoding,
            body.iterations,
            body.length_beam,
            body.nbest,
            body.min_length,
            body.max_length,
            body.keep_repeats,
        )
        sources = list(generator.read(texts, body.lengths, decoding))
    except (TypeError, ValueError) as problem:
        message = str(problem)
        if message.startswith("texts[0]: "):
            message = message.replace("texts[0]", body.name(0), 1)
        raise HTTPException(422, shortened(message)) from problem
    for i, source in enumerate(sources):
        if generator.is_empty(source):
            raise HTTPException(422, f"{body.name(i)} has no characters that the model reads, only control characters")
    return sources, decoding


def _policy(page: str) -> str:
    """A Content-Security-Policy under which only the page's own script and style run."""
    allowed = {}
    for element in ("script", "style"):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
        digest = hashlib.sha256(content.encode("utf-8")).digest()
        allowed[element] = f"{element}-src 'sha256-{base64.b64encode(digest).decode()}'"
    return "; ".join(
        ["default-src 'none'", *allowed.values(), "connect-src 'self'", "img-src data:", "base-uri 'none'"]
        + ["form-action 'none'", "frame-ancestors 'none'"]
    )
