"""What can go wrong in inference, as one tree; every sentence says what to do.

InferenceError
 +-- ModelNotFound      no such model package in the repository
 +-- PackageInvalid     model.toml cannot be read or lacks something
 +-- PackageTampered    a file is missing or is not the one the package was made with
 +-- EngineRejected     a graph or execution provider is not what the predictor needs
 +-- InputRejected      this image or prompt cannot be answered; terminal
 |    +-- UnsuitableImage   blank, noise, too small, of another kind: the sentence says which
 +-- OutputInvalid      an engine gave numbers that cannot be right
 +-- DeviceOutOfMemory  the device had no memory left; later it may have
 +-- DeadlinePassed     its turn did not come in time; nothing was run
"""


class InferenceError(Exception):
    """Anything that stops a prediction."""


class ModelNotFound(InferenceError):
    """The model repository has no package of this name."""


class PackageInvalid(InferenceError):
    """The package's model.toml cannot be read or lacks something."""


class PackageTampered(InferenceError):
    """A file of the package is missing or differs from its sha256."""


class EngineRejected(InferenceError):
    """A graph or an execution provider is not what the predictor needs."""


class InputRejected(InferenceError):
    """An image or prompt that cannot be answered; trying again will not help."""


class UnsuitableImage(InputRejected):
    """An image that nothing can be said about; the sentence begins with "Not suitable:"."""


class OutputInvalid(InferenceError):
    """An engine gave numbers that cannot be right."""


class DeviceOutOfMemory(InferenceError):
    """The device had no memory left; the same run may succeed later."""


class DeadlinePassed(InferenceError):
    """There was more urgent work than time; the same run may succeed later."""
