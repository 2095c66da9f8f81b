"""Training configs whose numbers come from a measured run."""

from mismatch_probe.export.exporter import (
    ExportedConfig,
    Exporter,
    available_exporters,
    export_config,
    register_exporter,
)

__all__ = [
    "ExportedConfig",
    "Exporter",
    "available_exporters",
    "export_config",
    "register_exporter",
]
