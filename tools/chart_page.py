"""What of the Helm chart is made from elsewhere: `python -m tools.chart_page`.

values.schema.json gets the settings of each service, and README.md a table of all values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]
from combiner.settings import CombinerSettings
from discovery_mock.settings import DiscoverySettings
from modelstore.settings import ModelstoreSettings

from fedcombiner.servicekit.settings import ServiceSettings

CHART: Final = Path(__file__).parents[1] / "deploy" / "helm"
SCHEMA: Final = CHART / "values.schema.json"
PAGE: Final = CHART / "README.md"
SERVICES: Final[Mapping[str, type[ServiceSettings]]] = {
    "combiner": CombinerSettings,
    "modelstore": ModelstoreSettings,
    "discovery": DiscoverySettings,
}
# What the chart says by values of its own, or leaves to the image. `insecure` is nobody's to say here.
OF_THE_CHART: Final = frozenset(
    """
    host port metrics_host metrics_port log_level log_format drain_seconds tls_cert_file tls_key_file
    tls_from_discovery operator_token operator_token_file insecure require_client_tokens redis_url
    redis_password
    store data scratch minio_url minio_bucket minio_region minio_access_key minio_secret_key minio_ca_file
    advertise advertise_tls modelstores discovery_url discovery_ca_file discovery_token
    combiner_ca_file combiner_cert_file combiner_key_file combiner_token
    """.split()  # noqa: SIM905
)
KEPT: Final = ("type", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
HEAD: Final = """# Helm chart of Federated Combiner

<!-- Made by `make chart` from values.yaml and values.schema.json; do not edit. -->

```
helm install combiner deploy/helm          # from a checkout; says what to do next
helm test combiner                         # ten clients train one round
```

How it is run in production, upgraded and watched: [docs/kubernetes.md](../../docs/kubernetes.md).

## Values

A value that is not here, or is not what its row says, is refused before anything is installed.

| value | default | |
|---|---|---|
"""
SETTINGS: Final = """
## Settings of the services

In `combiner.settings`, `modelstore.settings` and `discovery.settings`, as in
`--set combiner.settings.MAX_CLIENTS=500`.
"""


def allowed(settings: type[ServiceSettings]) -> dict[str, Any]:
    """JSON schema of what may be under `settings` of a service."""
    fields = settings.model_json_schema()["properties"]
    rows = {
        name.upper(): {
            "description": field["description"],
            **{key: field[key] for key in KEPT if key in field},
            **({"additionalProperties": field["additionalProperties"]} if field["type"] == "object" else {}),
        }
        for name, field in fields.items()
        if name not in OF_THE_CHART
    }
    return {"type": "object", "additionalProperties": False, "properties": rows}


def schema() -> str:
    """What values.schema.json must hold."""
    whole = json.loads(SCHEMA.read_text())
    for service, settings in SERVICES.items():
        whole["$defs"][f"{service}Settings"] = allowed(settings)
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def page() -> str:
    """What README.md must hold."""
    whole = json.loads(schema())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = [HEAD.rstrip("\n")]
    lines += [
        f"| `{name}` | {shown(default)} | {cell(text)} |" for name, default, text in rows(whole, values)
    ]
    lines += [SETTINGS.rstrip("\n")]
    for service, settings in SERVICES.items():
        lines += ["", f"### {service}", "", "| setting | default | |", "|---|---|---|"]
        fields = settings.model_json_schema()["properties"]
        lines += [
            f"| `{name}` | {shown(fields[name.lower()]['default'])} | {cell(row['description'])} |"
            for name, row in whole["$defs"][f"{service}Settings"]["properties"].items()
        ]
    return "\n".join(lines) + "\n"


def rows(
    schema: Mapping[str, Any], values: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, str]]:
    """Name, default and description of each value; of a group before its parts."""
    for name, default in values.items():
        one = schema["properties"][name]
        if "properties" in one:
            yield f"{prefix}{name}", None, one["description"]
            yield from rows(one, default, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", default, one["description"]


def shown(default: Any) -> str:
    return (
        ""
        if default is None
        else f"`{default if isinstance(default, str) and default else json.dumps(default)}`"
    )


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    SCHEMA.write_text(schema())
    PAGE.write_text(page())
