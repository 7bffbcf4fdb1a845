"""Names on the Hugging Face hub where a folder is expected: what is fetched of them, and how a folder gets there.

The package huggingface_hub does the work: its cache, its progress bars, ``HF_TOKEN``, ``HF_ENDPOINT`` for a mirror,
``HF_HUB_OFFLINE``. It is imported when a name is looked up. Neither torch nor fairseq is needed.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mist_fairseq.extras import install_line
from mist_fairseq.files.exported import CONFIG, SUMS
from mist_fairseq.files.reading import read_json
from mist_fairseq.text.tokenizer_files import BESIDE, VOCABULARIES

logger = logging.getLogger(__name__)

TOKENIZER = (*VOCABULARIES, *BESIDE, "dict.txt")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PYTORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")

_LOGIN = "HF_TOKEN, or hf auth login"
_LONGEST_REASON = 300


def local_folder(name: str, files: Sequence[str] | None = None) -> str:
    """A folder as it is; of ``org/name``, ``org/name@revision`` or without ``org/`` the folder that it is fetched into.

    *files* are the names, or patterns of names, to fetch; by default those of a pre-trained encoder or a released
    model: settings, tokenizer, and weights as safetensors or, where there are none, as ``pytorch_model.bin``. The
    revision is a branch, a tag or a commit, by default ``main``.

    Raises:
        FileNotFoundError: there is no such folder, and no such name, or it cannot be had; says why and what to do.
        ValueError: it cannot be a name.
    """
    if os.path.isdir(name):
        return name
    if os.path.isfile(name):
        raise FileNotFoundError(f"{name} is a file: give its folder")
    if not may_be_name(name) or os.path.exists(name):
        expected = "give an existing one, or a name on the Hugging Face hub: org/name or org/name@revision"
        raise FileNotFoundError(f"there is no folder {name}: {expected}")
    folder = _fetch(name, files or [CONFIG, SUMS, *TOKENIZER, *SAFETENSORS])
    if files is None and not _has_any(folder, SAFETENSORS):
        folder = _fetch(name, PYTORCH)
    if not _has_any(folder, files or [*SAFETENSORS, *PYTORCH]):
        lacks = " and no ".join(files or [SAFETENSORS[0], PYTORCH[0]])
        raise FileNotFoundError(f"{name} on {_endpoint()} has no {lacks}: give another name")
    logger.info("%s is in %s", name, folder)
    return folder


def exported_folder(name: str, kind: str, files: Sequence[str]) -> str:
    """``local_folder`` of a model that ``scripts/export.py`` wrote.

    Of a model whose ``config.json`` is of another *kind* no more is fetched: the reader of the folder says what it is.
    """
    folder = local_folder(name, [CONFIG])
    if folder == name or read_json(Path(folder) / CONFIG).get("format") != kind:
        return folder
    return local_folder(name, files)


def may_be_name(text: str) -> bool:
    """Whether a text looks like a name on the hub, and not like a path; a folder of two parts looks like both."""
    return not text.startswith((".", "/", "~")) and text.partition("@")[0].count("/") <= 1


def push_folder(folder: str, name: str, files: Sequence[str], private: bool = False) -> str:
    """Upload *files* of a folder as one commit to ``org/name``, which is made if it is not there; returns its address.

    A new one is *private*, or what the organisation makes its new ones.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: the hub cannot be reached, or does not take it; says why and what to do.
        FileExistsError: it is there and not private.
        ValueError: it cannot be a name.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(f"to push to the Hugging Face hub: {install_line('hub')}") from error
    try:
        address = HfApi().create_repo(name, private=private or None, exist_ok=True)
        if private and not HfApi().model_info(name).private:
            raise FileExistsError(f"{name} is there and not private: make it so on {address}, or choose another name")
        about = f"Export of {', '.join(files)} by mist_fairseq"
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message=about)
    except FileExistsError:
        raise
    except Exception as error:
        raise _explained(error, name, f"{folder} cannot be pushed to") from error
    return str(address)


def _fetch(name: str, files: Sequence[str]) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        message = f"there is no folder {name}; to look for it on the Hugging Face hub: {install_line('hub')}"
        raise FileNotFoundError(message) from error
    repo, _, revision = name.partition("@")
    try:
        return snapshot_download(repo, revision=revision or None, allow_patterns=list(files))
    except Exception as error:  # its own, and those of what it sends requests with
        raise _explained(error, name, f"there is no folder {name}, and it cannot be fetched from") from error


def _has_any(folder: str, patterns: Sequence[str]) -> bool:
    return any(any(Path(folder).glob(pattern)) for pattern in patterns)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _explained(error: Exception, name: str, failure: str) -> Exception:
    """The error for the user, in a line, where huggingface_hub has several; *failure* is for those of the network."""
    from huggingface_hub import errors

    repo, endpoint = name.partition("@")[0], _endpoint()
    while isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{name!r} is no folder and no name on the Hugging Face hub: org/name or org/name@revision")
    if isinstance(error, errors.GatedRepoError):  # which is a RepositoryNotFoundError, too
        message = f"{name} is gated: accept its terms on {endpoint}/{repo}, and give a token of that account ({_LOGIN})"
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = f"there is no folder {name}, and no such model on {endpoint}: check the name; a private one needs a "
        message += f"token ({_LOGIN})"
    elif isinstance(error, errors.RevisionNotFoundError):
        message = f"{name}: {repo} on {endpoint} has no such revision: give a branch, a tag or a commit"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        message = f"{failure} {endpoint}: HF_HUB_OFFLINE is set, and it is not in the cache"
    else:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        message = f"{failure} {endpoint}: check network, token ({_LOGIN}) and HF_ENDPOINT; the answer was {reason!r}"
    return FileNotFoundError(message)
