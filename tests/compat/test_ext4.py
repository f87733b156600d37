"""A real file system in a volume: what e2fsprogs made goes in, and e2fsprogs finds it whole when it comes out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from snapctl.engine.container import Container
from snapctl.engine.model import Cow
from snapctl.services.transfer import export_node, import_volume
from tests.support.images import allocated_bytes, noise
from tests.support.requires import needs

MIB = 1 << 20
IMAGE_BYTES = 48 * MIB

OLD_FILES = {
    "readme.txt": b"as it was on Monday\n",
    "etc/config": b"colour = blue\n",
    "data/table.bin": noise(3 * MIB + 123, 1),
    "data/gone.bin": noise(700_001, 2),
}
NEW_FILES = {
    "readme.txt": b"as it is on Tuesday, and longer than before\n",
    "etc/config": b"colour = red\n",
    "data/table.bin": noise(2 * MIB + 77, 3),
    "data/added.bin": noise(5 * MIB + 1, 4),
}


def make_image(path: Path, files: dict[str, bytes]) -> Path:
    """Make an ext4 image that holds `files`."""
    folder = path.with_suffix(".d")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    mke2fs = needs("mke2fs", package="e2fsprogs")
    command = [mke2fs, "-q", "-t", "ext4", "-b", "4096", "-d", str(folder), str(path), f"{IMAGE_BYTES // 1024}k"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return path


def files_in(image: Path, scratch: Path) -> dict[str, bytes]:
    """All files in an ext4 image, once it has passed a check of the file system."""
    e2fsck = needs("e2fsck", package="e2fsprogs")
    check = subprocess.run([e2fsck, "-fn", str(image)], capture_output=True, check=False)
    assert check.returncode == 0, check.stdout
    debugfs = needs("debugfs", package="e2fsprogs")
    scratch.mkdir()
    subprocess.run([debugfs, "-R", f"rdump / {scratch}", str(image)], check=True, capture_output=True)
    return {str(path.relative_to(scratch)): path.read_bytes() for path in scratch.rglob("*") if path.is_file()}


@pytest.mark.parametrize("block_size", [4096, 65536])
@pytest.mark.parametrize("cow", list(Cow))
def test_a_snapshot_holds_the_old_files_and_the_volume_the_new(tmp_path: Path, block_size: int, cow: Cow):
    box = tmp_path / "lab.snap"
    old = make_image(tmp_path / "old.img", OLD_FILES)
    new = make_image(tmp_path / "new.img", NEW_FILES)
    with Container.create(str(box), block_size=block_size) as container:
        import_volume(container, "db", str(old), cow=cow)
    with Container.open(str(box), writable=True) as container:
        container.snapshot("db@mon")
    with Container.open(str(box), writable=True) as container:
        container["db"].write(0, new.read_bytes())

    outs = {name: tmp_path / f"{name}.out" for name in ("db", "db@mon")}
    for name, out in outs.items():
        export_node(str(box), name, str(out))
        assert allocated_bytes(out) < IMAGE_BYTES // 2
    assert outs["db"].read_bytes() == new.read_bytes()
    assert outs["db@mon"].read_bytes() == old.read_bytes()
    assert files_in(outs["db@mon"], tmp_path / "monday") == OLD_FILES
    assert files_in(outs["db"], tmp_path / "today") == NEW_FILES


def test_a_clone_changed_on_its_own_leaves_snapshot_and_volume_whole(tmp_path: Path):
    box = tmp_path / "lab.snap"
    old = make_image(tmp_path / "old.img", OLD_FILES)
    with Container.create(str(box)) as container:
        import_volume(container, "db", str(old))
        container.snapshot("db@mon")
        container.clone("db@mon", "dev")
    dev = tmp_path / "dev.img"
    export_node(str(box), "dev", str(dev))
    (tmp_path / "extra").write_bytes(noise(MIB, 5))
    debugfs = needs("debugfs", package="e2fsprogs")
    subprocess.run(
        [debugfs, "-w", "-R", f"write {tmp_path / 'extra'} extra", str(dev)], check=True, capture_output=True
    )
    with Container.open(str(box), writable=True) as container:
        container["dev"].write(0, dev.read_bytes())

    for name, files in {"db": OLD_FILES, "db@mon": OLD_FILES, "dev": {**OLD_FILES, "extra": noise(MIB, 5)}}.items():
        out = tmp_path / f"{name}.out"
        export_node(str(box), name, str(out))
        assert files_in(out, tmp_path / f"{name}.files") == files
