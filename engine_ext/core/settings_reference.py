"""The page of all settings, `docs/settings.md`, made from the configuration itself."""

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reprise.engine_ext.core.config import RepriseConfig

_HEAD = """\
# Settings

Every setting, as an environment variable, in the TOML, YAML or JSON file that `REPRISE_CONFIG`
names, or in `--additional-config '{"reprise": {...}}'`; the later ones win over the earlier: the
file over the environment, and the command line over both. An unknown setting, or one out of its
bounds, is refused by name before the engine starts.

```
REPRISE_RETRIEVAL__URL=redis://localhost:6379/0
```

is the same as `[retrieval]` with `url = "redis://localhost:6379/0"` in a TOML file, and as
`--additional-config '{"reprise": {"retrieval": {"url": "redis://localhost:6379/0"}}}'`.
"""


def settings_page() -> str:
    """Render the page as Markdown."""
    sections = {
        name: field.default
        for name, field in RepriseConfig.model_fields.items()
        if isinstance(field.default, BaseModel)
    }
    alone = {
        name: field for name, field in RepriseConfig.model_fields.items() if name not in sections
    }
    parts = [_HEAD, _table("REPRISE_", alone)]
    for name, section in sections.items():
        about = RepriseConfig.model_fields[name].description
        parts.append(f"## {name}\n\n{about}\n")
        parts.append(_table(f"REPRISE_{name.upper()}__", type(section).model_fields))
    return "\n".join(parts)


def _table(prefix: str, fields: dict[str, FieldInfo]) -> str:
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        default = "none" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{prefix}{name.upper()}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_page(), end="")
