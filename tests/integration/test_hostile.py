"""Tars made to do harm: read in a process of little memory that notices whatever is executed or opened."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.fault(16)]
ROOT = Path(__file__).resolve().parents[2]

# What reads the tars: indexed, verified, opened at random and streamed, under limits and with every act watched.
READER = """
import resource, sys
from pathlib import Path

FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
FORBIDDEN += ("pickle.find_class", "ctypes.dlopen")
import mentor.data.storage.verifying, mentor.data.making.indexing, mentor.data.storage.shards, mentor.data.streaming
from mentor.data.making.indexing import index_dataset
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.records import Dropped, UnusableSample
from mentor.data.storage.shards import ShardSet
from mentor.data.storage.tarsets import TarFields
from mentor.data.storage.verifying import verify
from mentor.data.streaming import StreamConfig, TarStream

tars, output = Path(sys.argv[1]), Path(sys.argv[2])
acts = []
sys.addaudithook(lambda event, arguments: acts.append(event) if event in FORBIDDEN else None)
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
made = index_dataset([str(tars)], TarFields(caption=sys.argv[4]), HeldOutConfig(share=0.3), output)
read = bad = 0
for split in ("train", "heldout"):
    shards = ShardSet(output, split)
    for shard, count in enumerate(shards.counts):
        for position in range(count):
            try:
                record = shards.record(shard, position)
                assert len(record.captions) == 1 and record.image.shape == (8, 8, 3), record.key
                read += 1
            except UnusableSample:
                bad += 1
stream = TarStream(StreamConfig(urls=(f"{tars}/*.tar",), caption=sys.argv[4], max_bad=1.0), 0)
streamed = sum(not isinstance(one, Dropped) for one in stream.records(0))
faults = verify(output, deep=True)
# Not getrusage: its figure begins with what the parent had when it made this process.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
print(read, bad, streamed, len(faults), peak, sorted(set(acts)), made.manifest["dropped"])
"""


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of 13,000 x 13,000 in some ten kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = 13_000
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def command(canary: Path) -> bytes:
    """A pickle that would make a file."""
    return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def write(path: Path, caption: str, canary: Path) -> None:
    """Good samples, and among them what must not be read, unpacked, followed or run."""
    good = json.dumps({"caption": "a red square"}).encode() if caption.startswith("json") else b"a red square"
    kind = caption.partition(".")[0]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:

        def add(name: str, content: bytes = b"", **changes: object) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))

        def sample(key: str, *more: tuple[str, bytes]) -> None:
            add(f"{key}.png", picture())
            add(f"{key}.{kind}", good)
            for name, content in more:
                add(f"{key}.{name}", content)

        for number in range(10):
            sample(f"good{number}")
        for name in ("pkl", "pickle", "pyd", "pth", "PKL", "jpg.pkl"):
            sample(f"with-{name.replace('.', '-')}", (name, command(canary)))
        sample("zipped", ("txt.gz", zlib.compress(bytes(64 << 20), 9)), ("x.pickle.gz", command(canary)))
        sample("link")
        add("link.webp", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.png", type=tarfile.LNKTYPE, linkname="good0.png")
        add("device.png", type=tarfile.CHRTYPE)
        add("pipe.png", type=tarfile.FIFOTYPE)
        for name in ("../outside", f"{canary.parent}/absolute"):
            add(f"{name}.png", picture())
            add(f"{name}.{kind}", good)
        add("bomb.png", bomb())
        add("bomb." + kind, good)
        add("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%touch " + str(canary).encode() + b") (w) file\n")
        add("script." + kind, good)
        add("deep.png", picture())
        add("deep.json", b"[" * 100_000)
        add("deep.txt", b"\xff\xfe")
        add("digits.png", picture())
        add("digits.cls", b"9" * 5000)
        add("digits.json", b'{"caption": ' + b"9" * 5000 + b"}")
        add("long.png", picture())
        add("long." + kind, b'"' + b"x" * (10 << 20) + b'"')


@pytest.mark.parametrize("caption", ["txt", "json.caption"])
def test_hostile_tars_do_nothing_and_take_little(tmp_path: Path, caption: str) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "tars").mkdir()
    (tmp_path / "here").mkdir()
    write(tmp_path / "tars" / "0.tar", caption, canary)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    arguments = [tmp_path / "tars", tmp_path / "index", str(2 << 30), caption]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", READER, *map(str, arguments)],
        env=environment,
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    read, bad, streamed, faults, peak, rest = done.stdout.split(" ", 5)
    assert int(read) >= 17, "the good samples among the bad ones"
    assert (int(bad), int(faults)) == (0, 0), "what cannot be used was left out when the index was made"
    assert int(streamed) >= 17
    assert int(peak) < 600
    assert rest.startswith("[] "), f"something was executed or opened: {rest}"
    assert "picture too large" in rest and "not a picture" in rest
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"tars", "here", "index"}, "no canary, and nothing put where a name in the tar points"
    assert not list((tmp_path / "here").iterdir())
