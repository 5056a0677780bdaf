"""Models of the Hugging Face Hub: which names mean a repository, and the copy of it on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from input_pipeline.errors import UserError, library_errors, say
from input_pipeline.files import expand_home
from lbdt_jax.checkpoint_checks import CheckpointError
from lbdt_jax.checkpoint_shared import CARD, CONFIG, FILES, FOREIGN_WEIGHTS, WEIGHTS, describe_foreign, is_shared

#: OWNER/NAME or OWNER/NAME@REVISION; a revision is a branch, a tag or a commit.
REPOSITORY = re.compile(r"(?P<name>(?P<owner>[A-Za-z0-9][\w.-]*)/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
#: The folder of all trainings by default. It may not be there yet, and no repository takes its place.
RUNS = "runs"


def locate_checkpoint(source: str | Path, any_model: bool = False) -> Path:
    """The path of a checkpoint that is named by the user: as a path, or as a repository of the Hugging Face Hub.

    What exists is a path. So is what looks like a file of weights, or lies in a folder that exists: a misspelled path
    never loads a stranger's model. OWNER/NAME otherwise, and OWNER/NAME@REVISION, mean a repository. Only its files
    with the names of FILES are downloaded, the weights only if they are of lbdt_jax, and none twice.

    Args:
      source: a path, in which a leading ~ is the home folder, or the name of a repository.
      any_model: whether a repository may hold another model, too.

    Returns:
      The path itself, which may not exist; or the folder with the files of the repository.

    Raises:
      UserError: the repository can't be downloaded: the message says why, and what to do.
      CheckpointError: the repository holds another model.
    """
    path = Path(expand_home(str(source)))
    match = REPOSITORY.fullmatch(str(source))
    if match is None or path.exists():
        return path
    if not match["revision"] and (
        match["owner"] == RUNS or Path(match["owner"]).exists() or path.suffix in FOREIGN_WEIGHTS
    ):
        return path
    name, revision = match["name"], match["revision"]
    if any_model:
        folder = _download(name, revision, FILES)
    else:
        folder = _download(name, revision, [file for file in FILES if file != WEIGHTS])
        if not is_shared(folder):
            reason = describe_foreign(folder) if folder.is_dir() else f"It has neither {CONFIG} nor {CARD}."
            raise CheckpointError(f"The repository {name} of the Hugging Face Hub holds no model of lbdt_jax. {reason}")
        # The weights of the same commit, which is the name of the folder.
        commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else revision
        folder = _download(name, commit, FILES)
    say(f"{name} of the Hugging Face Hub, revision {folder.name}: {folder}")
    return folder


def import_hub() -> ModuleType:
    """Imports huggingface_hub, which local folders don't need. Raises UserError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"Repositories of the Hugging Face Hub and model cards need: pip install huggingface_hub ({error})"
        ) from error
    return huggingface_hub


def _download(name: str, revision: str | None, files: list[str] | tuple[str, ...]) -> Path:
    """Downloads files of a repository into the cache of huggingface_hub. Raises UserError if that fails."""
    try:
        huggingface_hub = import_hub()
    except UserError as error:
        raise UserError(f"There is no folder {name}. {error}") from error
    with library_errors(lambda error: _explain(error, name, revision)):
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*files]))


def _explain(error: BaseException, name: str, revision: str | None) -> str:
    """The message about an error of huggingface_hub: what is wrong, and what to do."""
    from huggingface_hub import errors

    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, errors.HFValidationError):
        return f"There is no folder {name}, and no repository of the Hugging Face Hub can have this name: {reason}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"The repository {name} of the Hugging Face Hub is open only to those whom its owner admits: ask for "
            f"access on https://huggingface.co/{name}, then log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"There is no folder {name}, and no repository {name} on the Hugging Face Hub; or it is private: then log "
            "in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The repository {name} of the Hugging Face Hub has no branch, tag or commit {revision}."
    if isinstance(error, unreachable) or "Connect" in type(error).__name__:
        return (
            f"There is no folder {name}, and the Hugging Face Hub can't be reached; no complete copy of that "
            "repository is on this machine. Check the name, the network and HF_HUB_OFFLINE; or fetch it on another "
            f"machine with `hf download {name} --local-dir=DIR`, and pass that folder.\n"
            f"{type(error).__name__}: {reason}"
        )
    return f"{name} can't be downloaded from the Hugging Face Hub: {type(error).__name__}: {reason}"
