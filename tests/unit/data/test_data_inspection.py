"""tools/inspect_shards.py: the sheets it writes and the mistakes it refuses."""

import pytest
from PIL import Image

NAMES = {"records_train", "records_heldout"} | {
    f"task_{task}" for task in ("reconstruct", "segment", "text_to_image", "recover", "subject")
}


def test_sheets_of_records_and_of_every_task_are_written_and_named(command, shapes, tmp_path):
    done = command("tools/inspect_shards.py", shapes, "--output", tmp_path / "sheets", "--num", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.stem: path for path in (tmp_path / "sheets").iterdir()}
    assert written.keys() == NAMES
    assert {line.rsplit("/", 1)[-1].removesuffix(".png") for line in done.stdout.split()} == NAMES
    for path in written.values():
        with Image.open(path) as sheet:
            assert min(sheet.size) > 192
            assert len(set(sheet.convert("RGB").resize((64, 64)).getdata())) > 20, f"{path} is nearly empty"


def test_the_same_seed_gives_the_same_sheet(command, shapes, tmp_path):
    for name in ("one", "two"):
        command("tools/inspect_shards.py", shapes, "--output", name, "--num", "2", cwd=tmp_path)
    one, two = ((tmp_path / name / "task_recover.png").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no shards in nowhere"),
        (["SHAPES", "--num", "0"], "--num 0"),
        (["SHAPES", "--output", "file"], "file"),
    ],
)
def test_mistakes_end_in_one_line_and_code_two(command, shapes, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    given = [shapes if argument == "SHAPES" else argument for argument in arguments]
    done = command("tools/inspect_shards.py", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
