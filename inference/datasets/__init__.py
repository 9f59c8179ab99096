"""DATASETS: name -> (module, class), imported on demand."""

DATASETS: dict[str, tuple[str, str]] = {"m3ds": ("inference.datasets.sample", "M3dsSampler")}
