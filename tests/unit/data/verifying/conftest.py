"""A data set of our own and one of indexed tars, and copies of both to damage."""

import json
import shutil
from pathlib import Path

import pytest
from damaging import LAYOUT, make_record
from layouts import picture_bytes, write_tar

from mentor.data.making.building import write_dataset
from mentor.data.making.indexing import index_dataset
from mentor.data.making.recipes import HeldOutConfig
from mentor.data.storage.tarsets import TarFields


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "data"
    splits = ["heldout" if number % 7 == 6 else "train" for number in range(21)]
    pairs = [(split, make_record(number)) for number, split in enumerate(splits)]
    write_dataset({"name": "test"}, pairs, root, 6, LAYOUT)
    return root


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "tars"
    for tar in range(3):
        members = []
        for number in range(tar * 7, tar * 7 + 7):
            record = make_record(number)
            members.append((f"{record.key}.jpg", picture_bytes(tuple(range(number, number + 3)), (60, 50))))
            members.append((f"{record.key}.json", json.dumps({"of": "no interest", "number": number}).encode()))
            members.append((f"{record.key}.txt", record.captions[0].encode()))
        write_tar(root / f"train/{tar:06d}.tar", members)
    index_dataset([str(root / "train")], TarFields(), HeldOutConfig(share=0.3), root)
    return root


@pytest.fixture(params=["records", "tars"])
def pristine(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))
