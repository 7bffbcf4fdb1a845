"""The server's pages: single files whose script and style alone may run."""

import base64
import hashlib
import importlib.resources
import re

#: The Content-Security-Policy of what is no page.
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def load_page(name: str, **parts: str) -> tuple[str, str]:
    """A page, and a policy under which nothing else runs; ``<!-- NAME -->`` in it stands for what *parts* give."""
    page = importlib.resources.files("mist_fairseq.serve").joinpath(name).read_text(encoding="utf-8")
    for part, content in parts.items():
        page = page.replace(f"<!-- {part} -->", content)

    def digest(element: str) -> str:
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
        return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode()

    own = f"script-src 'sha256-{digest('script')}'; style-src 'sha256-{digest('style')}'"
    return page, f"{NOTHING}; {own}; connect-src 'self'; img-src data:"
