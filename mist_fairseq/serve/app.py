"""The web application: a page, ``/generate``, ``/health`` and ``/metrics``."""

import asyncio
import base64
import hashlib
import importlib.resources
import re
from dataclasses import fields

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

import mist_fairseq
from mist_fairseq.generate.decoding import DECODINGS, Decoding
from mist_fairseq.generate.text_generator import Output, Source, TextGenerator
from mist_fairseq.serve.batching import Batcher
from mist_fairseq.serve.info import Info, describe
from mist_fairseq.serve.limits import Limits, flag
from mist_fairseq.serve.messages import Error, GenerateRequest, GenerateResponse, explain
from mist_fairseq.serve.middleware import Guard, client_leaves, read_json, unless

_QUICK = 10_000  # characters that are tokenized in a few milliseconds, for which the event loop can stand still


def create_app(generator: TextGenerator, limits: Limits | None = None, info: Info | None = None) -> FastAPI:
    """Make an ASGI application around a model, which one thread calls, and its tokenizer, which several threads do."""
    limits = limits or Limits()
    info = info or describe(generator, limits)
    metrics = CollectorRegistry()
    batcher = Batcher(generator.generate_sources, limits, metrics)
    page, policy = _page()
    app = FastAPI(
        title="MIST",
        version=mist_fairseq.__version__,
        lifespan=lambda _: batcher,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # redirects would go to whatever host the client names
        exception_handlers={HTTPException: _explain, Exception: _explain},
        separate_input_output_schemas=False,  # an answer's fields with defaults may be missing
    )
    app.state.batcher = batcher  # for the server, which closes it

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"model": Error}})
    async def health():
        """200 while requests are taken, 503 while the server is shutting down."""
        batcher.check_open()
        return {"status": "ok"}

    @app.head("/info", include_in_schema=False)
    @app.get("/info")
    async def show_info() -> Info:
        """The model that is served, and what may be asked of it."""
        return info

    @app.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    schema = GenerateRequest.model_json_schema()

    @app.post(
        "/generate",
        response_model=GenerateResponse,
        responses={status: {"model": Error} for status in (400, 408, 413, 415, 422, 500, 503)},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )
    async def generate(request: Request):
        """Generate for one text or several."""
        content = await read_json(request, limits, batcher)
        try:
            body = GenerateRequest.model_validate(content)
            decoding = body.make_decoding()
            if _check_limits(body, decoding, limits) <= _QUICK:
                sources = _read(body, decoding, generator)
            else:
                sources = await asyncio.to_thread(_read, body, decoding, generator)
        except (TypeError, ValueError) as problem:
            raise HTTPException(422, explain(problem, content)) from problem
        outputs = await unless(client_leaves(request), batcher.submit(sources, decoding))
        if outputs is None:
            raise ClientDisconnect
        names = [each.name for each in fields(Output) if body.details or each.name in ("text", "score", "cut")]
        answers = [[{name: getattr(output, name) for name in names} for output in ranked] for ranked in outputs]
        return JSONResponse({"id": body.id, "outputs": answers})

    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(Guard, metrics=metrics, paths=paths, policy=policy, batcher=batcher)
    return app


def _check_limits(body: GenerateRequest, decoding: Decoding, limits: Limits) -> int:
    """Check a request, and count its characters. A ``max_`` limit of an option holds for its default, too."""

    def within(what: str, value, limit: str):
        most = getattr(limits, limit, None)
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


def _read(body: GenerateRequest, decoding: Decoding, generator: TextGenerator) -> list[Source]:
    """Tokenize a request's texts, of which none may be empty."""
    sources = list(generator.read(body.all_texts(), body.lengths, decoding))
    for i, source in enumerate(sources):
        if generator.is_empty(source):
            raise ValueError(f"texts[{i}] is empty, expected a text (white space and control characters do not count)")
    return sources


def _page() -> tuple[str, str]:
    """The page, and a Content-Security-Policy under which only the page's own script and style run."""
    page = importlib.resources.files("mist_fairseq.serve").joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("<!-- decodings -->", "".join(f"<option>{name}</option>" for name in DECODINGS))

    def digest(element: str) -> str:
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
        return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode()

    policy = (
        f"default-src 'none'; script-src 'sha256-{digest('script')}'; style-src 'sha256-{digest('style')}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


async def _explain(_, problem: Exception) -> JSONResponse:
    if isinstance(problem, HTTPException):
        return JSONResponse({"error": problem.detail}, problem.status_code, problem.headers)
    return JSONResponse({"error": "an error inside the server; its log says which"}, 500)
