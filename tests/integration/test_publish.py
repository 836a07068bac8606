"""Releases sent to the hub and loaded from it by name, in Python and at the command line. The hub is a fake."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from commandline import check_refusal, run_here
from fakehub import READER, STRANGER, WRITER, Hub, faked
from huggingface_hub import ModelCard, constants
from PIL import Image
from planned import opened
from safetensors.numpy import save_file
from tiny import save_tiny_releases, tiny_generator, tiny_image_tokenizer

from mentor.config import compose, validate
from mentor.data.pictures import read_metadata
from mentor.errors import UserError
from mentor.evaluation.benchmarks import load_contestant
from mentor.generate import generate, load, regenerate
from mentor.generate import main as draw
from mentor.models.checkpoint import Card, load_generator, save_generator, weights_fingerprint
from mentor.publish import push
from mentor.training.blueprint import draw_blueprint
from mentor.training.build import build_module
from mentor.training.config import TrainConfig

NAME = "me/shapes"
PROMPT = "a large red circle"
DATA = {"root": "data/shapes", "fingerprint": "0123456789abcdef"}
METRICS = {"validation/loss": 2.5, "psnr": 21.25, "broken": float("nan"), "train/loss": 2.0}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator's release with all that a card can tell."""
    folder = tmp_path_factory.mktemp("releases") / "model"
    tokenizer = tiny_image_tokenizer()
    card = Card("shapes stage 2", {"steps": 3}, METRICS, DATA, Image.new("RGB", (8, 8), "red"))
    save_generator(folder, tiny_generator(tokenizer), tokenizer, 64, card)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with faked(monkeypatch, tmp_path / "home") as hub:
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield hub


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Code, output and complaints of `python -m mentor.ARGUMENTS`."""

    def run(module: str, *arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_here(["-m", f"mentor.{module}", *map(str, arguments)], monkeypatch)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def front(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_what_is_pushed_is_loaded_and_draws_the_same(hub: Hub, release: Path) -> None:
    assert push(release, NAME) == f"{hub.endpoint}/{NAME}"
    here, there = load(release), load(NAME)
    assert there.release.fingerprint == here.release.fingerprint
    assert generate(there, PROMPT, seed=3)[0].tobytes() == generate(here, PROMPT, seed=3)[0].tobytes()
    assert load_contestant(Path(NAME)).config["fingerprint"] == here.release.fingerprint
    assert load(NAME, cache_dir=Path("own"), token=READER).folder.is_relative_to(Path("own").resolve())


def test_all_of_a_release_is_sent_in_one_commit_and_nothing_else(hub: Hub, release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_tiny_releases(tmp_path)
    for name in ("notes.log", "grid.png", ".hidden"):
        (folder / name).write_text("mine")
    before = content(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    push(folder, NAME, message="first")
    repository = hub.repositories[NAME]
    assert repository.messages == ["", "first"]
    sent = {name: file for name, file in repository.files().items() if name != ".gitattributes"}
    assert sent.keys() == before.keys() - {"notes.log", "grid.png", ".hidden"}
    assert [name for name, file in sent.items() if file != before[name]] == ["README.md"]
    assert content(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    push(release, NAME)
    assert repository.messages[2].startswith("generator ") and len(repository.messages) == 3
    assert repository.files()["model.safetensors"] == (release / "model.safetensors").read_bytes()


def test_the_card_tells_people_and_the_hub(hub: Hub, release: Path) -> None:
    push(release, NAME)
    files = hub.repositories[NAME].files()
    facts = front(files["README.md"])
    assert facts["library_name"] == "mentor" and facts["license"] == "apache-2.0"
    assert facts["pipeline_tag"] == "text-to-image" and "mentor" in facts["tags"]
    # Read by the hub's own library as well.
    results = ModelCard(files["README.md"].decode()).data.eval_results
    assert {(each.metric_type, each.metric_value) for each in results} == {("validation/loss", 2.5), ("psnr", 21.25)}
    assert {(each.dataset_name, each.dataset_revision) for each in results} == {("shapes", DATA["fingerprint"])}
    text = files["README.md"].decode()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {heading}" for heading in ("Training", "Data", "Metrics", "Licence", "Limits")
    ]
    for words in (
        "| root | data/shapes |",
        "| psnr | 21.25 |",
        "| train/loss | 2 |",
        "![samples](samples.png)",
        f'load("{NAME}")',
    ):
        assert words in text
    assert files["samples.png"] == (release / "samples.png").read_bytes()
    assert "pipeline_tag" not in front(files["image_tokenizer/README.md"])


def test_another_licence_stands_in_what_is_sent_alone(hub: Hub, release: Path) -> None:
    before = content(release)
    push(release, NAME, licence="cc-by-4.0")
    card = hub.repositories[NAME].files()["README.md"]
    assert front(card)["license"] == "cc-by-4.0"
    assert b"The weights: cc-by-4.0." in card and b"apache" not in card
    assert content(release) == before
    with pytest.raises(UserError, match=r'the hub does not take me/shapes \("license" must be one of'):
        push(release, NAME, licence="no-such")
    assert len(hub.repositories[NAME].messages) == 2


def test_what_the_owner_wrote_into_a_card_stays_and_older_cards_get_what_they_lack(hub: Hub, tmp_path: Path) -> None:
    folder = save_tiny_releases(tmp_path) / "tokenizer"
    old = "---\nlibrary_name: mentor\nlicense: mit\ntags: [mine]\n---\n\n# Old\n\nMy words.\n\n## Limits\n\nMany.\n"
    (folder / "README.md").write_text(old)
    push(folder, NAME)
    card = hub.repositories[NAME].files()["README.md"].decode()
    assert front(card.encode()) == {"library_name": "mentor", "license": "mit", "tags": ["mine"]}
    assert card.endswith("# Old\n\nMy words.\n\n## Licence\n\nThe weights: mit.\n\n## Limits\n\nMany.\n")
    push(folder, NAME)
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(UserError, match=r"README\.md is no card"):
        push(folder, NAME)


def test_an_adapter_goes_as_any_release(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({}, folder / "model.safetensors")
    about = {"format": "mentor", "kind": "adapter", "image_size": 64, "base": {"name": "you/base", "fingerprint": "0f"}}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "README.md").write_text("# An adapter\n")
    push(folder, NAME)
    facts = front(hub.repositories[NAME].files()["README.md"])
    assert (facts["base_model"], facts["base_model_relation"]) == ("you/base", "adapter")
    assert facts["pipeline_tag"] == "text-to-image" and facts["tags"] == ["mentor", "adapter"]


def test_branches_are_made_and_loaded(hub: Hub, release: Path, run: Run, tmp_path: Path) -> None:
    save_tiny_releases(tmp_path, codes=16)
    push(tmp_path / "model", NAME)
    assert push(release, NAME, revision="v1") == f"{hub.endpoint}/{NAME}/tree/v1"
    push(release, NAME, revision="v1", licence="mit")
    assert f'load("{NAME}@v1")'.encode() in hub.repositories[NAME].files("v1")["README.md"]
    main, branch = load(NAME), load(NAME, revision="v1")
    assert main.release.fingerprint != branch.release.fingerprint == load(release).release.fingerprint
    code, _, said = run("generate", PROMPT, "--model", NAME, "--revision", "v1", "--output", "out")
    assert code == 0, said
    assert read_metadata(Path("out/000000.png"))["fingerprint"] == branch.release.fingerprint
    check_refusal(*run("generate", PROMPT, "--model", NAME, "--revision", "v2")[::2], ["no revision v2 of it"])
    check_refusal(*run("generate", PROMPT, "--model", release, "--revision", "v1")[::2], ["folders have no revisions"])
    assert not Path("outputs").exists()


def test_a_picture_names_the_commit_it_was_made_with_and_is_made_again_from_it(
    hub: Hub, release: Path, tmp_path: Path
) -> None:
    push(release, NAME)
    commit = hub.repositories[NAME].branches["main"]
    draw([PROMPT, "--model", NAME, "--output", "out"])
    picture = Path("out/000000.png")
    assert read_metadata(picture)["model"] == f"{NAME}@{commit}"
    push(save_tiny_releases(tmp_path, codes=16) / "model", NAME)
    again = regenerate(picture)
    assert again.tobytes() == Image.open(picture).tobytes()
    draw(["--from-png", str(picture), "--output", "again"])
    assert Path("again/000000.png").read_bytes() == picture.read_bytes()
    with pytest.raises(UserError, match=rf"was made by model .*, {NAME}@\w+ is .*: give the folder of that model"):
        draw(["--from-png", str(picture), "--model", NAME, "--output", "other"])


def test_the_command_says_what_it_sends_and_where_it_is(hub: Hub, release: Path, run: Run, tmp_path: Path) -> None:
    folder = save_tiny_releases(tmp_path) / "model"
    (folder / "notes.log").touch()
    code, out, err = run("publish", folder, NAME, "--private", "--licence", "mit", "--dry-run")
    assert (code, err) == (0, "") and hub.asked == []
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in out and "left out  notes.log" in out and "nothing was sent" in out
    code, out, err = run("publish", folder, NAME, "--private", "--licence", "mit", "--message", "mine")
    assert (code, err) == (0, "") and out.endswith(f"{hub.endpoint}/{NAME}\n")
    repository = hub.repositories[NAME]
    assert repository.private and repository.messages == ["", "mine"]
    assert front(repository.files()["README.md"])["license"] == "mit"


def test_training_begins_from_releases_of_the_hub(hub: Hub, release: Path, tmp_path: Path, shapes: Path) -> None:
    push(release, NAME)
    base = [f"data.root={shapes}", f"run.dir={tmp_path / 'run'}", "experiment=test", "data.batch_size=4"]

    def settings(*overrides: str) -> TrainConfig:
        return validate(TrainConfig, compose("train", [*overrides, *base]))

    own = load_generator(release)
    first = settings("stage=1", f"image_tokenizer_from={NAME}")
    assert weights_fingerprint(build_module(first, opened(first)).image_tokenizer) == weights_fingerprint(
        own.image_tokenizer
    )
    assert draw_blueprint(first, opened(first)).image_tokenizer.config == own.image_tokenizer.config
    second = settings("stage=2", f"init_from={NAME}@{hub.repositories[NAME].branches['main']}")
    module = build_module(second, opened(second))
    assert weights_fingerprint(module.generator) == own.fingerprint
    assert draw_blueprint(second, opened(second)).generator.config == own.generator.config
    absent = settings("stage=2", "init_from=me/none")
    for begin in (build_module, draw_blueprint):
        with pytest.raises(UserError, match=r"^init_from: .*no repository me/none on the hub.*mentor.train stage=1"):
            begin(absent, opened(absent))


REFUSED = ("weights.pt", "image_tokenizer/old.ckpt", "model.bin", "x.pth", "x.pkl", "modeling.py")


@pytest.mark.parametrize("file", REFUSED)
def test_what_is_pickled_or_code_is_never_sent(hub: Hub, run: Run, tmp_path: Path, file: str) -> None:
    folder = save_tiny_releases(tmp_path) / "model"
    (folder / file).touch()
    check_refusal(*run("publish", folder, NAME)[::2], [str(folder), file, "take it out"])
    assert hub.asked == []


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut weights": (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is not whole"),
    "cut part": (lambda folder: cut(folder / "image_tokenizer" / "model.safetensors"), "is not whole"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "README.md is missing"),
    "no description": (lambda folder: (folder / "config.json").unlink(), "is not a release folder"),
    "other model": (lambda folder: (folder / "config.json").write_text("{}"), "does not describe a mentor model"),
    "other kind": (
        lambda folder: (folder / "config.json").write_text('{"format": "mentor", "kind": "critic"}'),
        "kind 'critic'",
    ),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_no_whole_release_is_not_sent(hub: Hub, run: Run, tmp_path: Path, case: str) -> None:
    folder = save_tiny_releases(tmp_path) / "model"
    damage, said = DAMAGES[case]
    damage(folder)
    check_refusal(*run("publish", folder, NAME)[::2], [said])
    assert hub.asked == []


def test_the_hub_refuses_in_one_line_and_has_nothing_of_it(
    hub: Hub, release: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*said: str, options: tuple[str, ...] = ()) -> None:
        check_refusal(*run("publish", release, NAME, *options)[::2], [NAME, *said])

    check_refusal(*run("publish", release, "shapes")[::2], ["shapes cannot be a name on the hub: give OWNER/NAME"])
    for token, said in ((READER, "may not write"), (STRANGER, "does not accept the token")):
        monkeypatch.setenv("HF_TOKEN", token)
        refused(said)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.asked)
    refused("no token", "HF_TOKEN", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE=1")
    assert len(hub.asked) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.status = 503
    refused("was not sent", "out of order")
    hub.status = None
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        started = time.monotonic()
        refused("was not sent", "refused")
        assert time.monotonic() - started < 5
    assert hub.repositories == {}
    push(release, NAME)
    refused("is public on the hub", options=("--private",))
    monkeypatch.setenv("HF_TOKEN", READER)
    refused("may not write", "no right to write here")
    assert len(hub.repositories[NAME].messages) == 2


def test_each_failure_of_loading_is_one_line_and_writes_nothing(
    hub: Hub, release: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, release, private=True)
    files = hub.repositories[NAME].files()
    hub.add("me/pickled", release).commit({"config.json": files["config.json"], "model.pt": b"harm"})
    hub.add("me/other", release).commit({"config.json": b"{}", "model.safetensors": b""})
    hub.add("me/cut", release).files()["model.safetensors"] = files["model.safetensors"][:-8]
    monkeypatch.delenv("HF_TOKEN")
    for model, said in (
        (NAME, "or it is private"),
        ("me/none", "no repository me/none on the hub"),
        ("me/pickled", "pickled weights (model.pt)"),
        ("me/other", "no release of mentor"),
        ("me/cut", "model.safetensors is not whole"),
        ("a/b/c", "is not a release folder"),
    ):
        check_refusal(*run("generate", PROMPT, "--model", model, "--output", "out")[::2], [model, said])
    assert not Path("out").exists()
