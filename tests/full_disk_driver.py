"""Run `microtome run` on small disks until they are full, and then on with room; started by test_faults.py.

In a mount namespace of its own: each disk is a tmpfs, of some size or some number of files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from crash_driver import load_once, readable, small_shards, tree
from fault_driver import run
from faulty_disk import FaultyDisk

PAGE = 4096


def mount(disk: Path, options: str) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=False).returncode:
        sys.exit(99)


def main() -> None:
    words, folder, steps = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    disk, nothing = folder / "disk", FaultyDisk(folder / "nowhere")
    disk.mkdir()
    words += ["-o", str(disk / "out"), "--quiet", "--workers", "0", "--threads", "1"]
    small_shards()
    load_once()
    mount(disk, "size=64m")
    assert run(words, nothing)[0] == 0
    expected = tree(disk / "out")
    files = list((disk / "out").rglob("*"))
    pages = sum(-(-path.stat().st_size // PAGE) for path in files if path.is_file())
    subprocess.run(["umount", str(disk)], check=True)
    sizes = [PAGE * (2 + pages * step // steps) for step in range(steps)]
    counts = [2 + len(files) * step // steps for step in range(steps)]
    wrong, places = [], []
    for options in [f"size={size}" for size in sizes] + [f"size=64m,nr_inodes={count}" for count in counts]:
        mount(disk, options)
        code, said = run(words, nothing)
        if code != 74 or said.count("\n") != 1 or "Free some space and run the same command" not in said:
            wrong.append(f"{options}: {code} {said}")
        places.append(said.split(": ")[0].removeprefix(f"ERROR {disk}/"))
        try:
            readable(disk / "out")
        except Exception as error:
            wrong.append(f"{options}: {error}")
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=9999", str(disk)], check=True)
        code, said = run(words, nothing)
        if code or tree(disk / "out") != expected:
            wrong.append(f"{options}: run again: {code} {said}")
        subprocess.run(["umount", str(disk)], check=True)
    shutil.rmtree(disk)
    sys.stdout.write(json.dumps({"disks": len(places), "places": places, "wrong": wrong}))


if __name__ == "__main__":
    main()
