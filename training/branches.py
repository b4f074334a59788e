"""What only backbones with residual branches in many blocks can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agssp_zoo.errors import InvalidArgumentError, SettingError

if TYPE_CHECKING:
    from agssp_zoo.models import Backbone

    from .pretrain.settings import PretrainSettings
    from .settings import TrainSettings


def set_branches(backbone: Backbone, settings: TrainSettings | PretrainSettings) -> None:
    """Lets a backbone leave out branches, and compute blocks twice in place of keeping them, as the settings say.

    Raises:
        SettingError: it cannot.
    """
    try:
        backbone.set_drop_path(settings.drop_path)
    except InvalidArgumentError as error:
        raise SettingError(f"--drop-path {settings.drop_path}: {error}") from None
    try:
        backbone.set_checkpointing(settings.checkpointing)
    except InvalidArgumentError as error:
        raise SettingError(f"--checkpointing: {error}") from None
