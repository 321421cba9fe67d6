"""The page of settings says what the configuration is."""

from pathlib import Path

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.settings_reference import settings_page

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), (
        "run: python -m reprise.engine_ext.core.settings_reference > docs/settings.md"
    )


def test_every_setting_is_explained() -> None:
    for name, field in RepriseConfig.model_fields.items():
        assert field.description, name
        for setting, inner in getattr(type(field.default), "model_fields", {}).items():
            assert inner.description, f"{name}.{setting}"
