"""The web application: pages, ``/generate``, OpenAI's ``/v1``, and what operators ask."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client import Info as InfoMetric
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

import mist_fairseq
from mist_fairseq.generate.decoding import DECODINGS
from mist_fairseq.generate.text_generator import Output, TextGenerator
from mist_fairseq.serve.access import KeyCheck
from mist_fairseq.serve.answering import Answerer
from mist_fairseq.serve.batching import Batcher
from mist_fairseq.serve.completions import completions
from mist_fairseq.serve.info import Info, describe
from mist_fairseq.serve.limits import Limits
from mist_fairseq.serve.messages import (
    CompletionError,
    Error,
    GenerateRequest,
    GenerateResponse,
    body_schema,
    error_response,
    explain,
)
from mist_fairseq.serve.middleware import Guard, read_json
from mist_fairseq.serve.pages import load_page

_REFUSED = {400, 401, 408, 413, 415, 500, 503}


def create_app(
    generator: TextGenerator,
    limits: Limits | None = None,
    info: Info | None = None,
    *,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> FastAPI:
    """Make an ASGI application around a model, which one thread calls, and its tokenizer, which several threads do.

    Args:
        generator: the model.
        limits: what is taken of requests.
        info: what ``/info`` answers, by default what can be told of *generator* itself.
        keys: the API keys of which a request must have one, if there are any.
        origins: of other sites whose pages may ask.
    """
    limits = limits or Limits()
    info = info or describe(generator, limits)
    metrics = CollectorRegistry()
    batcher = Batcher(generator.generate_sources, limits, metrics)
    answerer = Answerer(generator, limits, batcher)
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
    _add_pages(app)
    _add_operation(app, batcher, info, metrics)
    _add_generate(app, answerer)
    app.include_router(completions(answerer, info.name), responses=_errors(CompletionError, _REFUSED | {404}))
    if keys:
        app.add_middleware(KeyCheck, keys=keys)
    if origins:  # around the check of keys: a browser asks without a key whether it may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(Guard, metrics=metrics, paths=paths, batcher=batcher)
    return app


def _errors(model: type[BaseModel], statuses: Iterable[int]) -> dict[int | str, dict]:
    return {status: {"model": model} for status in sorted(statuses)}


def _add_pages(app: FastAPI):
    options = "".join(f"<option>{name}</option>" for name in DECODINGS)
    pages = {"/": load_page("page.html", decodings=options), "/docs": load_page("docs.html")}
    for path, (page, policy) in pages.items():
        headers = {"Content-Security-Policy": policy}

        async def show_page(page=page, headers=headers) -> HTMLResponse:
            return HTMLResponse(page, headers=headers)

        app.add_api_route(path, show_page, methods=["GET", "HEAD"], include_in_schema=False)


def _add_operation(app: FastAPI, batcher: Batcher, info: Info, metrics: CollectorRegistry):
    labels = {name: str(getattr(info, name) or "") for name in ("name", "hash", "precision", "accelerate", "version")}
    InfoMetric("mist_model", "The model that is served.", registry=metrics).info(labels)
    ProcessCollector(registry=metrics)
    PlatformCollector(registry=metrics)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """200 as long as the server lives, also while it is shutting down."""
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses={503: {"model": Error}})
    async def ready() -> dict[str, str]:
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


def _add_generate(app: FastAPI, answerer: Answerer):
    @app.post(
        "/generate",
        response_model=GenerateResponse,
        responses=_errors(Error, _REFUSED | {422}),
        openapi_extra=body_schema(GenerateRequest),
    )
    async def generate(request: Request):
        """Generate for one text or several."""
        content = await read_json(request, answerer.limits, answerer.batcher)
        try:
            body = GenerateRequest.model_validate(content)
            sources, decoding = await answerer.read(body)
        except (TypeError, ValueError) as problem:
            raise HTTPException(422, explain(problem, content)) from problem
        outputs = await answerer.run(request, sources, decoding)
        names = [each.name for each in fields(Output) if body.details or each.name in ("text", "score", "cut")]
        answers = [[{name: getattr(output, name) for name in names} for output in ranked] for ranked in outputs]
        return JSONResponse({"id": body.id, "outputs": answers})


async def _explain(request: Request, problem: Exception) -> JSONResponse:
    if isinstance(problem, HTTPException):
        return error_response(request.url.path, problem.status_code, problem.detail, problem.headers)
    headers = {"X-Request-ID": request.state.request_id}  # this answer goes round the middleware
    return error_response(request.url.path, 500, "an error inside the server; its log says which", headers)
