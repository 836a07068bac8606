"""The report holds everything itself, escapes what comes from outside, and says honestly what was reached."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor.errors import UserError
from mentor.evaluation.benchmarks import Case, Results
from mentor.evaluation.curves import MOST_POINTS, Run, find_runs, loss_svg, read_run
from mentor.evaluation.headlines import HEADLINES
from mentor.evaluation.pictures import best, contact_sheet, worst
from mentor.evaluation.report import About, render_report, shown

METRICS = {
    "tokenizer/psnr": 23.5,
    "tokenizer/usage": 0.5,
    "reconstruct/psnr": 22.5,
    "reconstruct/ceiling_psnr": 23.4,
    "segment/iou": 0.71,
    "segment/iou_ceiling": 0.9,
    "segment/iou_error": 0.02,
    "subject/cp": 0.6,
    "subject/count": 3.0,
    "subject/candidates": 16.0,
}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def case(key: str, value: float, prompt: str = "a cup", reference: bool = True) -> Case:
    return Case(
        "subject", key, prompt, picture(1) if reference else None, picture(2), picture(3), {"cp": value, "pf": 1.0}
    )


def about(**changes: object) -> About:
    given = {"title": "t", "command": "python", "facts": {}, "runs": [], "shown": 2, "extremes": 1} | changes
    return About(**given)


class Links(HTMLParser):
    """Collects what a page would load, and checks that its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in ("meta", "img", "line", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_self_contained() -> None:
    runs = [Run("1", {"train/loss": [(0, 3.0), (10, 1.0)], "val/loss": [(10, 2.0)]})]
    cases = {"subject": [case(str(index), index % 2) for index in range(3)]}
    html = render_report(Results(METRICS, cases), about(runs=runs))
    page = Links()
    page.feed(html)
    assert not page.open
    assert len(page.loaded) == 3 * (2 + 1 + 1)
    for source in page.loaded:
        head, data = source.split(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (16, 16)
    assert not re.search(r"https?://|url\(|@import", html)
    assert html.count("<polyline") == 2


def test_report_escapes_what_comes_from_outside() -> None:
    evil = "<script>alert('x')</script>&\"$title"
    run = Run(evil, {f"loss{evil}": [(0, 1.0)]})
    html = render_report(
        Results(METRICS, {"subject": [case(evil, 1.0, prompt=f"The cup in <image>. {evil}")]}),
        about(title=evil, command=evil, facts={evil: evil}, runs=[run]),
    )
    assert "<script" not in html
    assert "&lt;image&gt;" in html
    page = Links()
    page.feed(html)
    assert not page.open


def test_floors_are_told_honestly() -> None:
    html = render_report(Results(METRICS, {}), about())
    assert "3 of 8 floors reached" not in html
    assert "4 of 8 floors reached" in html
    assert "Below the floor: Codes in use." in html
    assert "Not measured: Text to image, Recovery, Prompt followed (PF)." in html
    assert html.count('class="pass"') == 4
    assert html.count('class="fail"') == 1
    assert html.count("not measured") >= 3


def test_headlines() -> None:
    by_key = {headline.key: headline for headline in HEADLINES}
    reconstruct = by_key["reconstruct/psnr"]
    assert reconstruct.least(METRICS) == pytest.approx(21.9)
    assert reconstruct.passed(METRICS) is True
    assert reconstruct.passed({"reconstruct/psnr": 30.0}) is None
    assert reconstruct.beside(METRICS, "ceiling") == 23.4
    assert by_key["segment/iou"].beside(METRICS, "ceiling") == 0.9
    assert by_key["segment/iou"].beside(METRICS, "nothing") is None
    floors = {key: headline.floor for key, headline in by_key.items() if headline.floor is not None}
    assert floors == {
        "tokenizer/psnr": 22.0,
        "tokenizer/usage": 0.9,
        "reconstruct/psnr": -1.5,
        "segment/iou": 0.7,
        "text_to_image/prompt_following": 0.75,
        "recover/psnr_gain": 3.0,
        "subject/cp": 0.5,
        "subject/pf": 0.7,
    }


def test_best_and_worst() -> None:
    cases = [case("middle", 0.5), case("low", 0.0), case("high", 1.0)]
    assert [each.key for each in best(cases, 2)] == ["high", "middle"]
    assert [each.key for each in worst(cases, 2)] == ["low", "middle"]


def test_contact_sheet_shows_every_picture_enlarged() -> None:
    sheet = np.asarray(contact_sheet([case("a", 1.0), case("b", 0.0)]))
    large = np.repeat(np.repeat(picture(3), 2, axis=0), 2, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, large.shape)[:, :, 0]
    assert (windows == large).all(axis=(2, 3, 4)).sum() == 2
    assert contact_sheet([case("a", 1.0, reference=False)]).width < contact_sheet([case("a", 1.0)]).width


def test_numbers_as_shown() -> None:
    assert [shown(value) for value in (None, 0.5, 23.456, 1000.0, 0.0, -0.25)] == [
        "", "0.500", "23.46", "1,000", "0.000", "-0.250",
    ]  # fmt: skip


def write_table(folder: Path, text: str) -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "metrics.csv").write_text(text)
    return folder


def test_runs_are_read_and_found(tmp_path: Path) -> None:
    write_table(tmp_path / "demo" / "2", "step,train/loss,val/loss,lr\n10,3.5,,0.1\n20,2.5,2.75,0.1\n")
    write_table(tmp_path / "demo" / "tokenizer", "step,train/loss\n1,nan\n2,0.5\n")
    (tmp_path / "demo" / "pictures").mkdir()
    assert [path.name for path in find_runs(tmp_path / "demo" / "2" / "release")] == ["tokenizer", "2"]
    assert read_run(tmp_path / "demo" / "2") == Run(
        "2", {"train/loss": [(10.0, 3.5), (20.0, 2.5)], "val/loss": [(20.0, 2.75)]}
    )
    assert read_run(tmp_path / "demo" / "tokenizer").losses == {"train/loss": [(2.0, 0.5)]}
    assert find_runs(tmp_path / "nowhere" / "2" / "release") == []


def test_unreadable_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run folder"):
        read_run(tmp_path / "none")
    with pytest.raises(UserError, match="damaged"):
        read_run(write_table(tmp_path / "bad", "step,train/loss\n1,low\n"))


def test_curves_stay_inside_and_small() -> None:
    points = [(float(step), 1e9 if step == 7 else 1 / (1 + step)) for step in range(5000)]
    svg = loss_svg({"train/loss": points})
    (path,) = re.findall(r'points="([^"]*)"', svg)
    pairs = [tuple(map(float, pair.split(","))) for pair in path.split()]
    assert len(pairs) <= MOST_POINTS
    assert all(0 <= x <= 560 and 0 <= y <= 240 for x, y in pairs)
    assert loss_svg({"empty": []}) == ""
