"""docs/control.md against the methods of the control socket, both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from snapctl.engine.container import Container
from snapctl.services import operations
from snapctl.services.control import protocol, status
from snapctl.services.control.methods import Methods
from snapctl.services.live.container import LiveContainer
from snapctl.services.nbd import wire
from snapctl.services.nbd.statistics import Statistics
from snapctl.services.operations import Parameter
from tests.docs.markdown import section, table, text_of, unquoted

DOCUMENT = text_of("docs/control.md")
ROWS = table(section(DOCUMENT, "Methods"), columns="method,params,result")
_FIELD = re.compile(r"`(\w+)` ([\w\[\]]+)(?: = ([^,]+))?")


def methods(tmp_path: Path) -> Methods:
    with Container.create(str(tmp_path / "lab.snap")) as container:
        return Methods(LiveContainer(container), dict)


def declared(tmp_path: Path) -> dict[str, dict[str, Parameter]]:
    services = methods(tmp_path).services
    own = {name: service.params for name, service in services.items()}
    return own | {name: method.params for name, method in operations.METHODS.items()}


def test_every_method_is_documented_and_no_other(tmp_path: Path):
    assert {unquoted(row["method"]) for row in ROWS} == declared(tmp_path).keys()


def test_params_are_documented_with_their_kinds_and_defaults(tmp_path: Path):
    known = declared(tmp_path)
    for row in ROWS:
        stated = {
            name: Parameter(kind, json.loads(default) if default else None)
            for name, kind, default in _FIELD.findall(row["params"])
        }
        assert stated == known[unquoted(row["method"])], row["method"]


def test_results_of_operations_are_documented():
    stated = {unquoted(row["method"]): {n: k for n, k, _ in _FIELD.findall(row["result"])} for row in ROWS}
    for name, method in operations.METHODS.items():
        assert stated[name] == method.result, name


def test_what_operations_say_that_they_return_is_what_they_return(tmp_path: Path):
    calls: list[tuple[str, dict[str, Any]]] = [
        ("create", {"name": "db", "size_bytes": 1 << 20}),
        ("snapshot", {"names": ["@mon"]}),
        ("clone", {"source": "db@mon", "name": "dev"}),
        ("rename", {"name": "dev", "new_name": "lab"}),
        ("resize", {"name": "lab", "size_bytes": 1 << 21}),
        ("trim", {"name": "lab", "offset_bytes": 0, "length_bytes": 4096}),
        ("delete", {"names": ["@mon"], "cascade": True}),
    ]
    assert {name for name, _ in calls} == operations.METHODS.keys()
    with Container.create(str(tmp_path / "lab.snap")) as container:
        for name, params in calls:
            result = operations.run(container, name, params)
            assert {key: type(value) for key, value in result.items()} == {
                key: {"int": int, "str": str, "list[str]": list}[kind]
                for key, kind in operations.METHODS[name].result.items()
            }


class _Reader:
    """A client that has read once."""

    description = "a client of the test"

    def __init__(self) -> None:
        self.statistics = Statistics()
        self.statistics.of(wire.CMD_READ).add(4096, 1000)

    def disconnect(self, reason: str) -> None:
        """Not asked to."""


def test_everything_that_status_tells_is_documented_and_nothing_else(tmp_path: Path):
    with Container.create(str(tmp_path / "lab.snap")) as container:
        container.create_volume("db", 1 << 20)
        live = LiveContainer(container)
        live.use(live.device("db"), _Reader())
        told = status.describe(live, 0.0, {"addresses": []})
    (client,) = told["clients"]
    (operation,) = client["operations"].values()
    stated = {
        names[0]: set(names[1:])
        for paragraph in section(DOCUMENT, "Status").split("\n\n")
        if (names := re.findall(r"`(\w+)`", paragraph))
    }
    assert stated == {
        "container": told["container"].keys(),
        "server": told["server"].keys(),
        "clients": client.keys() | operation.keys(),
    }


def test_codes_of_errors_are_documented():
    rows = table(section(DOCUMENT, "Errors"), columns="code,when")
    codes = {value for name, value in vars(protocol).items() if name.isupper() and isinstance(value, int) and value < 0}
    assert {int(row["code"]) for row in rows} == codes


def test_limits_are_documented():
    assert protocol.LONGEST_REQUEST == 1 << 20
    assert "at most 1 MiB" in DOCUMENT
    assert f"speaks, {protocol.VERSION}," in DOCUMENT
