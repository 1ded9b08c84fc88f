"""What the errors of transformers and the Hub mean to a user; and the Hub left alone where it cannot be reached."""

import http.client
import logging
import os
import pickle
import ssl
from collections.abc import Sequence
from functools import cache
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from runner.cli_boundary import first_line, is_out_of_memory

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 5
NO_WEIGHTS = "does not appear to have a file named"  # transformers
# What an answer of the Hub, by its status, means to a user.
_STATUS = {
    401: "wants an HF_TOKEN that it knows",
    403: "does not let this HF_TOKEN read it: a fine-grained one needs the permission to read gated repositories",
    404: "knows no such model or file",
    429: "has had too many requests from here: wait some minutes, or set HF_TOKEN",
}


@cache
def use_cache_alone_if_hub_is_away() -> None:
    """Ask once whether the Hub answers; its client would try five times for every file, minutes in all."""
    if huggingface_hub.is_offline_mode() or getproxies():  # what a proxy reaches is not for us to find out
        return
    hub = urlsplit(huggingface_hub.constants.ENDPOINT)
    if not _answers(hub):
        logger.warning("%s cannot be reached: what is in the cache must do", hub.hostname)
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # what its client and transformers look at, each time


def _answers(hub: SplitResult) -> bool:
    """Whether a server says anything at all within a few seconds."""
    kind = http.client.HTTPConnection if hub.scheme == "http" else http.client.HTTPSConnection
    connection = kind(str(hub.hostname), hub.port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (ssl.SSLError, http.client.HTTPException) as error:  # the Hub's own client may know the certificate
        return not isinstance(error, http.client.RemoteDisconnected)
    except OSError:
        return False
    finally:
        connection.close()
    return True


def explain(error: BaseException, path: str, *, revision: str | None) -> str:
    """The reason in the chain of errors that a user can do something about; `revision` is None for local files."""
    chain = _causes(error)
    if revision is not None and NO_WEIGHTS in str(error):
        chain += _asked_again(path, revision)
    reason = next((reason for reason in (_from_hub(chain, path, revision), _from_files(chain)) if reason), None)
    if reason is None:
        kind = "" if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
        reason = f"{path} cannot be loaded: {kind}{first_line(error)}"
    return f"model.id: {reason}" if path in reason else f"model.id: {path}: {reason}"


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what caused it."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _asked_again(path: str, revision: str) -> list[BaseException]:
    """Why there are no weights: transformers takes any answer of the Hub for a file that there is not."""
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(path, "model.safetensors", revision=revision))
    except EntryNotFoundError:
        return []
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
        return _causes(error)
    return []


def _from_hub(chain: Sequence[BaseException], path: str, revision: str | None) -> str | None:
    """Why the Hub does not give a model."""
    if any(isinstance(link, GatedRepoError) for link in chain):
        have = "this HF_TOKEN has no access" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        return f"{path} is gated and {have}. Accept its terms on https://huggingface.co/{path} and set HF_TOKEN."
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return f"the Hub knows no {path}, or only with an HF_TOKEN that may read it."
    codes = [getattr(getattr(link, "response", None), "status_code", None) for link in chain]
    if (code := next((code for code in codes if isinstance(code, int)), None)) is not None:
        return f"{path}: the Hub answered {code}: it {_STATUS.get(code, 'has trouble of its own: try again later')}."
    if revision is not None and any(isinstance(link, LocalEntryNotFoundError | ConnectionError) for link in chain):
        return f"{path} ({revision}) is not in the cache, and the Hub cannot be reached."
    return None


def _from_files(chain: Sequence[BaseException]) -> str | None:
    """What is wrong with the files of a model."""
    said = " ".join(first_line(link) for link in chain)
    if any(is_out_of_memory(link) for link in chain):
        return "does not fit into memory. Use a smaller dtype or model, or a larger machine."
    if any(isinstance(link, pickle.UnpicklingError) for link in chain):
        return "its pickle holds more than tensors and was not executed. Save the weights as safetensors."
    if "trust_remote_code" in said or "custom code" in said:
        return "brings code of its own, which is never executed. Use a model that transformers knows."
    if any(type(link).__name__ == "SafetensorError" for link in chain):
        return f"a safetensors file is damaged or cut off ({first_line(chain[0])}). Download or save it again."
    if "untagged enum" in said:
        return f"tokenizer.json is damaged, or of another version of the library tokenizers ({first_line(chain[0])})."
    return None
