#!/bin/sh
# The tour of README.md: every command is printed, then run, in a directory that is removed at the end.
#
# It needs snapctl and python3 in PATH and the usual tools of a POSIX system. Where mke2fs and e2fsck are present, it goes
# on with a file system. tests/docs/test_readme.py holds it against README.md. `make demo` runs it.
set -eu

PATH=$PATH:/usr/sbin:/sbin
unset SNAPCTL_CONTAINER

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$folder"

say() {
    printf '\n# %s\n' "$@"
}

run() {
    printf '$ %s\n' "$1"
    eval "$1"
}

# A command that has to fail.
refused() {
    printf '$ %s\n' "$1"
    if eval "$1" 2>&1; then
        echo "tour: this should have been refused" >&2
        exit 1
    fi
}

say 'An image to keep: an archive of a small site. A disk would do as well.'
run 'mkdir site'
run 'echo "open from 9 to 5" > site/hours.txt'
run 'seq 200000 > site/numbers.txt'
run 'python3 -m tarfile -c disk.img site'

say 'A container is one file. The image becomes a volume in it, and gets a snapshot.'
run 'snapctl init lab.snap'
run 'snapctl import lab.snap/web disk.img'
run 'snapctl snapshot lab.snap/web@mon'

say 'The volume changes, at any offset; the snapshot does not. It gets the one block that was overwritten.'
run 'echo "shut on holidays" | snapctl write lab.snap/web --offset 3K'
run 'snapctl read lab.snap/web --offset 3K --length 17'
run 'snapctl read lab.snap/web@mon --offset 3K --length 17'
refused 'echo "open all day" | snapctl write lab.snap/web@mon'
run 'snapctl list lab.snap'

say 'A clone is a snapshot that can be written, and a volume like any other.'
run 'snapctl clone lab.snap/web@mon dev'
run 'echo "open day & night" | snapctl write lab.snap/dev --offset 3K'

say 'Two snapshots of the same instant.'
run 'snapctl snapshot lab.snap/web@tue lab.snap/dev@try'

say 'What others need is not deleted by mistake, and a dry run says what would be freed.'
refused 'snapctl delete lab.snap/web@mon'
run 'snapctl delete --dry-run --cascade lab.snap/web@mon'

say 'Monday comes out as it went in.'
run 'snapctl export lab.snap/web@mon monday.img'
run 'cmp disk.img monday.img'
run 'python3 -m tarfile -l monday.img'

if command -v mke2fs >/dev/null && command -v e2fsck >/dev/null; then
    say 'The same with a file system: it is damaged, its snapshot is not.'
    run 'mke2fs -q -t ext4 -d site ext4.img 8M'
    run 'snapctl import lab.snap/disk ext4.img'
    run 'snapctl snapshot lab.snap/disk@clean'
    run 'seq 100000 | snapctl write lab.snap/disk'
    run 'snapctl export lab.snap/disk@clean clean.img'
    run 'e2fsck -fn clean.img 2>&1'
    run 'cmp ext4.img clean.img'
fi

say 'The whole container is sound; and this is the tree that has grown.'
run 'snapctl check lab.snap'
run 'snapctl tree lab.snap'
