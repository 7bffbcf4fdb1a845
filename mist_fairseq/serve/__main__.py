"""``python -m mist_fairseq.serve``."""

import sys

from mist_fairseq.extras import install_line

try:
    from mist_fairseq.serve.command import main
except ModuleNotFoundError as error:
    sys.exit(f"error: no module {error.name!r}, which the server needs: {install_line('serve')}")

if __name__ == "__main__":
    main()
