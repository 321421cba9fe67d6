"""The config of an engine with the connector that keeps blocks in a folder."""

from pathlib import Path
from typing import Any

from reprise.tests.engine_ext.kv_connectors.folder_connector import FolderConnector


def transfer_config(folder: Path) -> dict[str, Any]:
    """Return vLLM's `--kv-transfer-config`; loads that fail are computed."""
    return {
        "kv_connector": FolderConnector.__name__,
        "kv_connector_module_path": FolderConnector.__module__,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"folder": str(folder)},
    }
