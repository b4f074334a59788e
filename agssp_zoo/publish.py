"""A model folder -> a repository on the Hub.

What is uploaded is exactly what the folder's checksums.json lists, in one commit. The answer is what the registry has
to say about it: the commit and the SHA-256 of every file.
"""

from __future__ import annotations

import glob
import os
import shlex
from pathlib import Path
from typing import Any

from agssp_zoo.card import LIBRARY, PIPELINE_TAGS, REQUIRED_KEYS, read_header
from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import HubError, IntegrityError, InvalidArgumentError
from agssp_zoo.folder import CARD, CHECKSUMS, PICKLE_SUFFIXES, ModelFolder, check_structure, model_files


def check_folder(path: str | os.PathLike[str]) -> ModelConfig:
    """Checks that a model folder may be published.

    Args:
        path: the folder.

    Returns:
        Its config.

    Raises:
        ModelNotFoundError: it is no model folder.
        IntegrityError: a file differs from checksums.json, is missing, or is not listed there.
        InvalidArgumentError: it holds a pickle, or its card lacks what the Hub needs.
        ConfigError: its config.json is wrong.
    """
    folder = ModelFolder.open(path)
    there = model_files(folder.path)
    pickles = [name for name in there if name.lower().endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise InvalidArgumentError(
            f"{folder.path} holds {', '.join(pickles)}: such files can run code when they are read, so they are not "
            "published. Publish safetensors (`agssp-zoo convert`) and take them out of the folder."
        )
    if not folder.checksums:
        raise IntegrityError(
            f"{folder.path} has no {CHECKSUMS}; run `python -m agssp_zoo.folder {shlex.quote(str(folder.path))}`."
        )
    missing = sorted(set(folder.checksums) - set(there))
    if missing:
        raise IntegrityError(
            f"{folder.path} lacks {', '.join(missing)}, which {CHECKSUMS} lists; copy the folder anew."
        )
    for name in there:
        check_structure(folder.file(name))
    _check_card(folder)
    return folder.config


def publish(
    path: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> dict[str, dict[str, Any]]:
    """Uploads a model folder in one commit; the repository is made when it is not there.

    Args:
        path: the folder; it is checked first, see :func:`check_folder`.
        repo_id: ``owner/name``.
        token: access token; ``None`` takes HF_TOKEN or the one of ``hf auth login``.
        private: whether a new repository is private.
        message: the commit's message.
        dry_run: whether to stop before anything is uploaded; the revision is then ``None``.

    Returns:
        Model name -> what the registry says of it: ``revision`` and ``files`` (SHA-256 and size in bytes).

    Raises:
        HubError: the upload failed; the repository then is as it was before.
        InvalidArgumentError: ``repo_id`` is no such name.
        IntegrityError: see :func:`check_folder`, as for the other errors.
    """
    from agssp_zoo.hub import huggingface_hub
    from agssp_zoo.hub_transfer import explain

    hf = huggingface_hub()
    try:
        hf.utils.validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise InvalidArgumentError(f"{repo_id!r} is no repository name; give owner/name.")
    except hf.errors.HFValidationError as error:
        raise InvalidArgumentError(f"{repo_id!r} is no repository name (owner/name): {error}") from None
    config = check_folder(path)
    files = registry_files(path)
    revision = None
    if not dry_run:
        api = hf.HfApi(token=token, library_name=LIBRARY)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=Path(path),
                allow_patterns=[glob.escape(name) for name in (*files, CHECKSUMS)],
                delete_patterns="*",  # what is no longer part of the model
                commit_message=message or f"Publish {config.name}",
            )
        except Exception as error:
            raise HubError(f"{repo_id} cannot be published: {explain(hf, error, repo_id, 'main')}") from error
        revision = commit.oid
    return {config.name: {"revision": revision, "files": files}}


def registry_files(path: str | os.PathLike[str]) -> dict[str, dict[str, str | int]]:
    """File name -> ``sha256`` and ``size`` in bytes, as the registry states them, of a folder that was checked."""
    folder = ModelFolder.open(path)
    return {
        name: {"sha256": folder.checksums[name], "size": (folder.path / name).stat().st_size} for name in folder.names
    }


def _check_card(folder: ModelFolder) -> None:
    """Refuses a folder whose README.md lacks the YAML header, or says there what is not so."""
    card = folder.path / CARD
    header = read_header(card) if card.is_file() else {}
    missing = [key for key in REQUIRED_KEYS if key not in header]
    if missing:
        raise InvalidArgumentError(
            f"{card} needs a YAML header that states {', '.join(missing)}; `agssp_zoo.card.render_card(config)` "
            "writes one."
        )
    expected = {"library_name": LIBRARY, "pipeline_tag": PIPELINE_TAGS[folder.config.task]}
    for key, value in expected.items():
        if header[key] != value:
            raise InvalidArgumentError(f"{card} states {key}: {header[key]}; it must be {value}.")
