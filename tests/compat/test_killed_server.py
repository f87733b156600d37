"""fio writes and verifies; its server is killed meanwhile, and the next one has all that fio had been promised."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.cli.harness import digest, run
from tests.support.requires import needs
from tests.support.served import TIMEOUT_SECONDS, Serving, client, serve

KILLS = 3

# Each run writes the same to the same places, but for the time that each block carries; so after one that was cut off,
# every block still verifies.
JOB = ["--name=job", "--thread", "--rw=randwrite", "--bs=4k", "--size=8M", "--randseed=5", "--iodepth=16", "--fsync=16"]
VERIFIED = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]


def fio(server: Serving, *words: str) -> list[str]:
    program = needs("fio", package="fio")
    return [program, "--ioengine=nbd", f"--uri={server.door().uri('db')}", *JOB, *VERIFIED, *words]


def writes(server: Serving) -> int:
    clients = run("status", "--json", server.container).json["clients"]
    return sum(one["operations"].get("write", {"requests": 0})["requests"] for one in clients)


def test_what_fio_has_flushed_outlives_servers_that_are_killed_while_it_is_written_again(tmp_path: Path):
    lab = tmp_path / "lab.snap"
    run("create", lab / "db", "--size", "16M")
    with serve(lab, "--unix", tmp_path / "nbd") as server:
        client(*fio(server, "--end_fsync=1"))
        run("snapshot", lab / "db@written")
        written = digest(exported(lab, "db@written"))
        server.process.kill()
        server.process.wait(TIMEOUT_SECONDS)
    for _ in range(KILLS):
        with serve(lab, "--unix", tmp_path / "nbd") as server:
            client(*fio(server, "--verify_only"))
            again = subprocess.Popen(
                fio(server, "--rate_iops=1000"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                deadline = time.monotonic() + TIMEOUT_SECONDS
                while writes(server) < 200:
                    assert time.monotonic() < deadline
                server.process.kill()
                server.process.wait(TIMEOUT_SECONDS)
            finally:  # what fio makes of that is its affair: it may go round in circles
                again.kill()
                again.wait(TIMEOUT_SECONDS)
        run("check", lab)
    with serve(lab, "--unix", tmp_path / "nbd") as server:
        client(*fio(server, "--verify_only"))
        assert digest(exported(lab, "db@written")) == written


def exported(container: Path, name: str) -> Path:
    image = container.with_name(f"{name}.img")
    run("export", "--force", container / name, image)
    return image
