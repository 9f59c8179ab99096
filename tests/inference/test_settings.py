"""InferenceSettings refuse what cannot run."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from inference.settings import PACKAGES, InferenceSettings


def test_defaults_run_on_any_machine() -> None:
    settings = InferenceSettings()
    assert settings.model_repository == PACKAGES
    assert settings.execution_providers == ("CPUExecutionProvider",)
    assert (settings.threads, settings.max_new_tokens) == (0, None)


def test_the_default_repository_is_part_of_this_package() -> None:
    assert Path(__file__).resolve().parents[2] / "inference" / "packages" == PACKAGES


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": -1},
        {"threads": 5000},
        {"max_new_tokens": 0},
        {"execution_providers": []},
        {"precison": "fp16"},
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        InferenceSettings.model_validate(wrong)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        InferenceSettings().threads = 4  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in InferenceSettings.model_fields.values())
