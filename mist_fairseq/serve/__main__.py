"""``python -m mist_fairseq.serve``."""

import sys

# The extra [serve] brings torch and fairseq with it, which the server does not need.
_INSTALL = "pip install fastapi uvicorn prometheus-client array-api-compat numpy tokenizers"

try:
    from mist_fairseq.serve.command import main
except ModuleNotFoundError as error:
    sys.exit(f"error: no module {error.name!r}, which the server needs: {_INSTALL}")

if __name__ == "__main__":
    main()
