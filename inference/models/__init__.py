"""MODELS: name -> (module, class), imported on demand."""

MODELS: dict[str, tuple[str, str]] = {"sim4seg": ("inference.models.sim4seg", "Sim4Seg")}
