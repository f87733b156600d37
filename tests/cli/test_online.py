"""Commands on a container that a server holds: the same words, output and exit codes as without one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapctl import Container
from snapctl.cli import status
from snapctl.services.check import check_container
from snapctl.services.control.status import describe
from snapctl.services.live.container import LiveContainer
from snapctl.services.nbd import wire
from snapctl.services.nbd.statistics import Statistics
from tests.cli.harness import Terminal, command_line, finish, on_terminal, run, snapctl, start, wait_until_open
from tests.support.servers import User, served, served_by_process

CHANGES = {
    "create": ["create", "LAB/x", "--size", "1M"],
    "create what exists": ["create", "LAB/db", "--size", "1M"],
    "create too large": ["create", "LAB/x", "--size", "5T"],
    "snapshot": ["snapshot", "LAB/db@tue"],
    "snapshot of every volume": ["snapshot", "LAB@nightly"],
    "snapshot that exists": ["snapshot", "LAB/db@mon"],
    "snapshot of nothing": ["snapshot", "LAB/nosuch@mon"],
    "clone": ["clone", "LAB/db@mon", "dev"],
    "rename": ["rename", "LAB/db@mon", "tue"],
    "resize": ["resize", "LAB/db", "--size", "2M"],
    "resize to less": ["resize", "LAB/db", "--size", "4K"],
    "shrink": ["resize", "LAB/db", "--size", "4K", "--shrink"],
    "shrink on trial": ["resize", "LAB/db", "--size", "4K", "--shrink", "-n"],
    "delete": ["delete", "LAB/db@mon"],
    "delete on trial": ["delete", "LAB/db@mon", "-n"],
    "delete of every volume": ["delete", "LAB@mon"],
    "delete with dependents": ["delete", "LAB/db"],
    "delete all": ["delete", "LAB/db", "--cascade", "-y"],
    "trim": ["trim", "LAB/db", "--offset", "0", "--length", "4K"],
    "trim on trial": ["trim", "LAB/db", "--offset", "0", "--length", "4K", "--dry-run"],
    "trim beyond the end": ["trim", "LAB/db", "--offset", "2M", "--length", "4K"],
    "write": ["write", "LAB/db", "--offset", "1000"],
    "write a file": ["write", "LAB/db", "--input", "IMAGE"],
    "write beyond the end": ["write", "LAB/db", "--offset", "1048000"],
    "write a file beyond the end": ["write", "LAB/db", "--offset", "1M", "-i", "IMAGE"],
    "write to a snapshot": ["write", "LAB/db@mon"],
    "write the container": ["write", "LAB/db", "--input", "LAB"],
    "import": ["import", "LAB/x", "IMAGE"],
    "import a pipe": ["import", "LAB/x", "-"],
    "import what exists": ["import", "LAB/db", "IMAGE"],
    "import nothing": ["import", "LAB/x", "/dev/null"],
    "import the container": ["import", "LAB/x", "LAB"],
    "import with another policy": ["import", "LAB/x", "-", "--cow", "copy"],
    "import under a bad name": ["import", "LAB/x@y", "-"],
}
PIPED = b"piped" * 3000


def plain(text: str) -> str:
    """The text without the codes for colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def words(arguments: list[str], lab: Path) -> list[str]:
    return [word.replace("LAB", str(lab)).replace("IMAGE", str(lab.parent / "image")) for word in arguments]


def state(lab: Path) -> object:
    """All that can be told of a container but its times; it has to be whole."""
    assert check_container(str(lab), 5.0).exit_code == 0
    with Container.open(str(lab)) as container:
        nodes = [(node.name, node.kind, node.own_bytes, node.read(0, node.size_bytes)) for node in container.nodes]
        return nodes, container.used_bytes


@pytest.mark.parametrize("case", CHANGES)
def test_change_of_a_served_container_is_that_of_the_file(case: str, lab: Path):
    with (lab.parent / "image").open("wb") as image:
        image.write(b"begin" * 1000)
        image.truncate(200_000)
    other = Path(shutil.copy(lab, lab.with_name("twin.snap")))
    offline = snapctl(*words(CHANGES[case], lab), stdin=PIPED)
    expected = state(lab)
    lab.unlink()
    other.rename(lab)
    with served(lab):
        assert snapctl(*words(CHANGES[case], lab), stdin=PIPED) == offline
    assert state(lab) == expected


def hidden(lab: Path) -> int:
    """How many nodes a container has that cannot be seen; it has to be whole."""
    assert check_container(str(lab), 5.0).exit_code == 0
    with Container.open(str(lab)) as container:
        return len(container) - len(container.nodes)


def begin_transfer(command: str, lab: Path) -> subprocess.Popen[bytes]:
    """Start a command that is halfway through its input, as its server tells."""
    process = start(*words(["write", "LAB/db"] if command == "write" else ["import", "LAB/new", "-"], lab))
    assert process.stdin is not None
    for _ in range(9):
        process.stdin.write(os.urandom(1 << 20))
    process.stdin.flush()  # of which the pipe holds less than one, so the server has taken a piece of 4 MiB at least
    return process


@pytest.mark.parametrize("command", ["write", "import"])
def test_transfer_ends_with_its_client(command: str, lab: Path):
    run("resize", lab / "db", "--size", "1G")
    with served(lab):
        process = begin_transfer(command, lab)
        process.send_signal(signal.SIGINT)
        result = finish(process)
        assert result.code == 130
        assert result.err == f"snapctl: interrupted{'; nothing was changed' if command == 'import' else ''}\n"
        wait_until(lambda: snapctl("delete", lab / "db", "--cascade", "-n").code == 0)
        wait_until(lambda: snapctl("create", lab / "new", "--size", "4K").code == 0)
    assert hidden(lab) == 0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_volume_that_is_being_imported_is_not_to_be_seen_but_its_name_is_taken(lab: Path):
    with served(lab):
        process = begin_transfer("import", lab)
        taken = snapctl("create", lab / "new", "--size", "1M")
        assert (taken.code, taken.err) == (1, f"snapctl: new is being imported into {lab}\n")
        assert "no volume new" in snapctl("snapshot", lab / "new@x").err
        assert run("snapshot", f"{lab}@all").lines == ["db@all"]
        assert finish(process, b"the end") == (0, b"", "")
        assert run("snapshot", lab / "new@x").lines == ["new@x"]
    with Container.open(str(lab)) as container:
        assert container["new"].size_bytes == (9 << 20) + 7
        assert container["new"].read(9 << 20, 7) == b"the end"


def test_server_that_is_killed_in_an_import_leaves_nothing_of_it(lab: Path):
    used_bytes = run("info", lab, "--json").json["container"]["used_bytes"]
    with served_by_process(lab) as server:
        process = begin_transfer("import", lab)
        server.kill()
        result = finish(process)
    assert result.code == 1
    assert "went away" in result.err
    with Container.open(str(lab)) as container:
        assert container.used_bytes > used_bytes
        assert len(container) == 3
    run("create", lab / "new", "--size", "4K")
    run("delete", lab / "new")
    assert hidden(lab) == 0
    assert run("info", lab, "--json").json["container"]["used_bytes"] == used_bytes


def test_server_that_is_told_to_end_ends_an_import(lab: Path):
    with served_by_process(lab):
        process = begin_transfer("import", lab)
    assert finish(process).code == 1
    with Container.open(str(lab)) as container:
        assert len(container) == len(container.nodes) == 2


@pytest.mark.parametrize(
    ("arguments", "clients"),
    [
        (["delete", "LAB/db@mon"], ["db@mon"]),
        (["delete", "LAB/db", "--cascade"], ["db", "db@mon"]),
        (["resize", "LAB/db", "--size", "4K", "--shrink"], ["db"]),
    ],
)
def test_data_in_use_is_taken_away_by_force_only(arguments: list[str], clients: list[str], lab: Path):
    users = {name: User() for name in ("db", "db@mon")}
    used = [users[name] for name in clients]
    with served(lab, **users):
        for dry in ([], ["-n"]):
            refused = snapctl(*words(arguments, lab), *dry)
            number = "a client" if len(clients) == 1 else f"{len(clients)} clients"
            assert (refused.code, refused.out) == (1, b"")
            assert f"in use by {number}; disconnect first, or give --force" in refused.err
        assert "would free" in run(*words(arguments, lab), "--force", "-n").text
        assert [user.reasons for user in users.values()] == [[], []]
        assert "freed" in run(*words(arguments, lab), "--force").text
        assert [len(user.reasons) for user in used] == [1] * len(used)
        assert sum(len(user.reasons) for user in users.values()) == len(used)


def test_writer_whose_volume_is_deleted_by_force_hears_of_it(lab: Path):
    with served(lab):
        run("create", lab / "big", "--size", "1G")
        process = start("write", lab / "big")
        assert process.stdin is not None
        for _ in range(9):
            process.stdin.write(os.urandom(1 << 20))
        assert "in use by a client" in snapctl("delete", lab / "big").err
        run("delete", lab / "big", "--force")
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b"snapctl: big: its data is taken away by a command with --force\n"
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def test_what_takes_no_data_away_needs_no_force(lab: Path):
    with served(lab, db=User(), **{"db@mon": User()}):
        run("snapshot", lab / "db@tue")
        run("clone", lab / "db@mon", "dev")
        run("rename", lab / "db", "prod")
        run("resize", lab / "prod", "--size", "2M")
        run("delete", lab / "prod@tue")


@pytest.mark.parametrize("option", ["--repair", "--undo-repair"])
def test_served_container_is_not_repaired(option: str, lab: Path):
    with served(lab):
        for more in ([], ["-n"], ["-y"]):
            result = snapctl("check", option, *more, lab)
            assert (result.code, result.err) == (
                5,
                f"snapctl: {lab} is served by pid {os.getpid()}; this needs it alone, so stop the server first\n",
            )


def test_served_container_is_not_made_anew(lab: Path):
    with served(lab):
        assert snapctl("init", lab).code == 1


def test_locked_container_without_a_server_is_locked(lab: Path):
    with Container.open(str(lab), writable=True):
        assert snapctl("snapshot", lab / "db@x", "--wait", "0").code == 5


def test_server_that_comes_up_while_a_command_waits_is_asked(lab: Path):
    with Container.open(str(lab), writable=True):
        process = start("snapshot", lab / "db@tue", "--wait", "1")
        wait_until_open(lab, process)
    # It gets the lock, or finds the server when it gave up waiting.
    with served(lab):
        assert finish(process) == (0, b"db@tue\n", "")


def test_question_is_asked_before_a_server_destroys_data(lab: Path):
    with served(lab):
        code, seen = on_terminal("delete", lab / "db@mon", typed="n\n")
        assert code == 1
        assert "nothing was changed" in seen
        code, seen = on_terminal("delete", lab / "db@mon", typed="y\n")
        assert code == 0
        assert "freed" in seen
    with Container.open(str(lab)) as container:
        assert [node.name for node in container.nodes] == ["db"]


def test_terminal_is_read_by_the_command_and_not_by_the_server(lab: Path):
    with served(lab):
        terminal = Terminal(command_line("write", lab / "db"))
        terminal.type("typed\n\x04")
        assert terminal.close()[0] == 0
    with Container.open(str(lab)) as container:
        assert container["db"].read(0, 9) == b"typed\nnew"


def test_nearly_full_container_that_is_served_gets_its_warning(tmp_path: Path):
    path = tmp_path / "small.snap"
    run("init", path, "--capacity", "4M")
    run("create", path / "db", "--size", "8M")
    offline = snapctl("write", path / "db", stdin=os.urandom(3300 << 10)).err
    assert "warning" in offline
    with served(path):
        result = snapctl("create", path / "x", "--size", "1M")
        assert result.code == 0
        assert "warning" in result.err
        assert "% full" in result.err


class Counted(User):
    """A client whose requests are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = Statistics()

    def read(self, requests: int) -> None:
        for _ in range(requests):
            self.statistics.of(wire.CMD_READ).add(4096, 1000)


class TestStatus:
    def test_container_that_is_not_served(self, lab: Path):
        document = run("status", lab, "--json").json
        assert (document["server"], document["clients"]) == (None, [])
        assert document["container"]["path"] == str(lab)
        assert ["server", "none"] in [line.split() for line in run("status", lab).lines]
        assert "nothing to watch" in snapctl("status", "--watch", lab).err

    def test_container_that_is_served(self, lab: Path):
        with served(lab, db=User(), **{"db@mon": User()}):
            document = run("status", lab, "--json").json
            assert document["server"]["pid"] == os.getpid()
            assert {client["export"] for client in document["clients"]} == {"db", "db@mon"}
            assert {client["description"] for client in document["clients"]} == {User.description}
            lines = run("status", lab).lines
            assert ["clients", "2"] in [line.split() for line in lines]
            assert ["dirty", "0", "of", "1.1G"] in [line.split() for line in lines]
            assert "last commit" in "\n".join(lines)
            assert sum(line.startswith(User.description) for line in lines) == 2

    def test_it_fits_a_terminal_and_is_drawn_again_until_a_key_ends_it(self, lab: Path):
        with served(lab, db=User()):
            code, seen = on_terminal("status", lab)
            assert code == 0
            assert max(map(len, plain(seen).splitlines()[1:])) <= 80
            terminal = Terminal(command_line("status", "--watch", lab))
            terminal.expect("LATENCY")
            terminal.expect("REQ/S")
            terminal.type("\x03")
            code, seen = terminal.close()
            assert code == 0

    def test_clients_of_one_description_are_told_apart(self, lab: Path):
        with Container.open(str(lab)) as container:
            live, clients = LiveContainer(container), [Counted(), Counted()]
            for client, requests in zip(clients, (1000, 50), strict=True):
                live.use(live.device("db"), client)
                client.read(requests)
            before = describe(live, time.monotonic() - 1, {})
            for client in clients:
                client.read(10)
            table = status._clients(describe(live, time.monotonic() - 2, {}), before)
        assert [row[2] for row in table.rows] == ["10", "10"]

    def test_watch_through_a_pipe_goes_on_until_the_server_ends(self, lab: Path):
        with served(lab, db=User()):
            process = start("status", "--watch", lab)
            assert process.stdout is not None
            while b"REQ/S" not in process.stdout.readline():
                pass
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err.decode()) == (1, f"snapctl: the server of {lab} has ended\n")
