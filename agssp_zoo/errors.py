"""Every error that agssp-zoo raises on purpose, in one tree.

Catch :class:`AgsspZooError` to catch them all. Each message is one or two sentences: what is wrong, and what to do
about it. Errors that Python users know by another name also derive from that name (a wrong argument is a
``ValueError``, a missing package an ``ImportError``), so existing handlers keep working.
"""

from __future__ import annotations


class AgsspZooError(Exception):
    """Base class of all errors of this package."""


class InvalidArgumentError(AgsspZooError, ValueError):
    """An argument of a public function is of the wrong type, shape or range."""


class MissingDependencyError(AgsspZooError, ImportError):
    """An optional package is needed for this; the message names the extra to install."""


class ModelNotFoundError(AgsspZooError, LookupError):
    """No model of that name, or no model folder at that path."""


class WeightsNotPublishedError(ModelNotFoundError):
    """The architecture is known, but its weights are published nowhere yet; the message says how to make them."""


class ConfigError(AgsspZooError, ValueError):
    """A config.json that cannot be read, has an unknown key, a wrong value or a newer schema."""


class IntegrityError(AgsspZooError):
    """A file differs from its checksum, is truncated, or does not hold what its name says."""


class HubError(AgsspZooError, OSError):
    """A download or upload failed: no network, no access, no such repository, revision or file."""


class CheckpointError(AgsspZooError, ValueError):
    """A checkpoint cannot be converted: keys missing or misshapen, or not the layout asked for."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint names Python objects that a checkpoint has no need of; nothing of it was executed."""


class SourceError(AgsspZooError, OSError):
    """A prediction source cannot be found or listed."""


class ImageError(SourceError, ValueError):
    """Something that should be an image is not, or is truncated, empty or too large."""


class EngineError(AgsspZooError, RuntimeError):
    """An inference engine, device or execution provider is not there or cannot run this model."""


class ExportError(AgsspZooError, RuntimeError):
    """An export failed, or the exported file does not give the answers of the original."""


class DataError(AgsspZooError, ValueError):
    """A data set cannot be recognised or read, or its labels contradict themselves."""


class TrainingError(AgsspZooError, RuntimeError):
    """Training cannot start, resume or go on; the last good state has been kept."""


class SettingError(TrainingError, InvalidArgumentError):
    """A setting of a training is missing, out of range, or has no effect beside the others; nothing has begun."""
