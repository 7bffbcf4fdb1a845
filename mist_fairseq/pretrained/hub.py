"""Names on the Hugging Face hub where a folder is expected: what is fetched of them, and how a folder gets there.

The package huggingface_hub does the work: its cache, its progress bars, ``HF_TOKEN``, ``HF_ENDPOINT`` for a mirror,
``HF_HUB_OFFLINE``. It is imported when a name is looked up. Neither torch nor fairseq is needed.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mist_fairseq.files.exported import CONFIG, SUMS

logger = logging.getLogger(__name__)

TOKENIZER = (
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "sentencepiece.bpe.model", "spiece.model", "sp.model", "dict.txt"),
)
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PYTORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")

_INSTALL = "pip install huggingface_hub, or mist-fairseq with the extra [hub]"
_LONGEST_REASON = 200


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
    if not may_be_name(name) or os.path.exists(name):
        expected = "give an existing one, or a name on the Hugging Face hub: org/name or org/name@revision"
        raise FileNotFoundError(f"there is no folder {name}: {expected}")
    repo, _, revision = name.partition("@")
    needed = files or [*SAFETENSORS, *PYTORCH]
    folder = _fetch(name, repo, revision, files or [CONFIG, SUMS, *TOKENIZER, *SAFETENSORS])
    if files is None and not _has_any(folder, SAFETENSORS):
        folder = _fetch(name, repo, revision, PYTORCH)
    if not _has_any(folder, needed):
        raise FileNotFoundError(f"{name} on {_endpoint()} has no {' and no '.join(needed)}: give another name")
    logger.info("%s is in %s", name, folder)
    return folder


def may_be_name(text: str) -> bool:
    """Whether a text looks like a name on the hub, and not like a path; a folder of two parts looks like both."""
    return not text.startswith((".", "/", "~")) and text.partition("@")[0].count("/") <= 1


def push_folder(folder: str, name: str, files: Sequence[str], private: bool = False) -> str:
    """Upload *files* of a folder as one commit to ``org/name``, which is made if it is not there; returns its address.

    A new one is *private*, or what the organisation makes its new ones.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: the hub cannot be reached, or does not take it; says why and what to do.
        ValueError: it cannot be a name.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(f"to push to the Hugging Face hub: {_INSTALL}") from error
    try:
        address = HfApi().create_repo(name, private=private or None, exist_ok=True)
        about = f"Export of {', '.join(files)} by mist_fairseq"
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message=about)
    except Exception as error:
        raise _explained(error, name, name) from error
    return str(address)


def _fetch(name: str, repo: str, revision: str, files: Sequence[str]) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        message = f"there is no folder {name}; to look for it on the Hugging Face hub: {_INSTALL}"
        raise FileNotFoundError(message) from error
    try:
        return snapshot_download(repo, revision=revision or None, allow_patterns=list(files))
    except Exception as error:  # its own, and those of what it sends requests with
        raise _explained(error, name, repo) from error


def _has_any(folder: str, patterns: Sequence[str]) -> bool:
    return any(any(Path(folder).glob(pattern)) for pattern in patterns)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _explained(error: Exception, name: str, repo: str) -> Exception:
    """The error for the user, in a line, where huggingface_hub has several."""
    from huggingface_hub import errors

    endpoint, cause = _endpoint(), error.__cause__ or error
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{name!r} is no folder and no name on the Hugging Face hub: org/name or org/name@revision")
    if isinstance(error, errors.GatedRepoError):  # which is a RepositoryNotFoundError, too
        advice = f"accept the terms on {endpoint}/{repo} and give a token of the same account (HF_TOKEN, hf auth login)"
        message = f"{name} is gated: {advice}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        advice = "check the name; a private one needs a token (HF_TOKEN, hf auth login)"
        message = f"there is no folder {name}, and nothing of this name on {endpoint}: {advice}"
    elif isinstance(error, errors.RevisionNotFoundError):
        message = f"{name}: {repo} on {endpoint} has no such revision: give a branch, a tag or a commit"
    elif isinstance(cause, errors.OfflineModeIsEnabled):
        message = f"there is no folder {name}, and it was never fetched from {endpoint}: unset HF_HUB_OFFLINE once"
    else:
        reason = " ".join(str(cause).split())[:_LONGEST_REASON]
        advice = "check the network, the token (HF_TOKEN, hf auth login) and the address of a mirror (HF_ENDPOINT)"
        message = f"{name} is no folder, and {endpoint} does not give it or take it: {advice}. It says: {reason}"
    return FileNotFoundError(message)
