"""Charts, tables, sheets and the page: complete, escaped, and of one file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mentor.comparing.budget import Budget
from mentor.comparing.charts import Line, Point, bounds, course_svg, pareto_svg
from mentor.comparing.comparison import Comparison, CoursePoint, SweepPoint, as_json, best_points
from mentor.comparing.files import write_comparison
from mentor.comparing.page import render_page
from mentor.comparing.pictures import Row, comparison_sheet, side_by_side
from mentor.comparing.scores import Score
from mentor.comparing.tables import headline_table, markdown
from mentor.errors import UserError
from mentor.evaluation.axes import HEIGHT, LEFT, RIGHT, WIDTH
from mentor.evaluation.benchmarks import Case

EVIL = "<script>alert('x')</script> & \"co\" | pipe"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def budget(name: str, seconds: float = 20.0) -> Budget:
    facts = {"kind": "ar", "precision": "32-true", "image tokenizer": "f0", "trainings": EVIL}
    return Budget(name, {"generator: head": 60, "generator: total": 100}, seconds, 12, 96, facts)


def comparison() -> Comparison:
    rows = [
        Row("text_to_image", EVIL, None, picture(1), (picture(2), picture(3))),
        Row("subject", "a cup", picture(4), picture(5), (picture(6), picture(7))),
    ]
    first = Score(0.25, (0.2, 0.3), (0.1, 0.4), 0.0, (0.0, 0.0))
    better = Score(0.5, (0.5, 0.5), (0.4, 0.6), 0.25, (0.1, 0.4))
    course = [CoursePoint(5.0, "stage 1, step 4", {"subject/cp_pf": 0.1})]
    end = [CoursePoint(20.0, "stage 1, release after step 12", {"subject/cp_pf": 0.25})]
    sweep = [SweepPoint({}, 0.1, {"subject/cp_pf": 0.25}), SweepPoint({"guidance": 1.0}, 0.05, {"subject/cp_pf": 0.2})]
    other = [SweepPoint({"steps": 4}, 0.07, {"subject/cp_pf": 0.1}), SweepPoint({"steps": 900}, float("nan"), {}, EVIL)]
    facts = {"date": "2026-01-02T03:04:05+00:00", "command": f"python {EVIL}", "device": "cpu"}
    return Comparison(
        names=["ar", EVIL],
        budgets=[budget("ar"), budget(EVIL, 40.0)],
        warnings=[f"The runs differ: {EVIL}."],
        scores={
            "tokenizer/psnr": [Score(22.5, (22.5, 22.5)), Score(None, ())],
            "subject/cp_pf": [first, better],
        },
        beside={"subject/cp_pf": 0.25, "subject/cp_pf_ceiling": 0.9, "subject/cp_pf_chance": 0.01},
        seconds=[{"subject": 0.1}, {"subject": 0.2}],
        courses=[course + end, end],
        sweeps=[sweep, other],
        rows=rows,
        settings=[{"seed": 0, "sampling": {"steps": None}}, {"seed": 0, "sampling": {"steps": EVIL}}],
        facts=facts | {"seeds": [0, 1], "examples of each task and seed": 8},
    )


class Tags(HTMLParser):
    """Tags of a page, and whether they are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "line", "br", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def test_page_is_one_file_and_escapes_what_comes_from_outside() -> None:
    page = render_page(comparison())
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.loaded) == 7
    assert all(source.startswith("data:image/png;base64,") for source in tags.loaded)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "$" not in re.sub(r"base64,[^\"]*", "", page), "nothing is left to fill in"
    for said in ("▲", "[0.400, 0.600]", "difference +0.250 [+0.100, +0.400]", "seeds: 0.200, 0.300", "not tried"):
        assert said in page
    assert "No checkpoints of &lt;script" in page
    assert "No checkpoints of ar " not in page


def test_markdown_is_a_table_of_measures_with_date_and_command() -> None:
    lines = markdown(comparison()).splitlines()
    assert lines[0] == "| measure | ar | <script>alert('x')</script> & \"co\" \\| pipe |"
    assert lines[1] == "| --- | --- | --- |"
    assert lines[2] == "| Image tokenizer (dB) | 22.50 |  |"
    assert lines[3] == "| CP x PF | 0.250 [0.100, 0.400] | 0.500 [0.400, 0.600] ▲ |"
    assert lines[4] == "| parameters | 100 | 100 |"
    assert lines[5] == "| seconds of compute | 20 | 40 |"
    assert lines[6] == "| samples seen | 96 | 96 |"
    assert lines[7] == "| seconds a picture (mean over tasks) | 0.1 | 0.2 |"
    assert "8 held-out examples of each task for each of 2 seeds; cpu; 2026-01-02." in lines
    assert f"python {EVIL}" in lines
    assert headline_table(comparison()).row_count == 3


def test_json_has_every_number_and_no_nan() -> None:
    content = json.loads(json.dumps(as_json(comparison()), allow_nan=False))
    assert content["measures"]["subject/cp_pf"]["ar"]["interval"] == [0.1, 0.4]
    assert content["measures"]["subject/cp_pf"][EVIL]["clear_difference"] is True
    assert content["ratios"]["seconds of compute"] == {"ar": 1.0, EVIL: 2.0}
    points = content["quality_over_sampling"]
    assert [point["best_in"] for point in points["ar"]] == [["subject/cp_pf"]] * 2
    assert points[EVIL][0]["best_in"] == []
    assert points[EVIL][1]["seconds"] is None
    assert best_points(comparison(), "subject/cp_pf") == {(0, 0), (0, 1)}


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_comparison(comparison(), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["compare.html", "compare.json", "compare.md", "pictures.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --output DIR or make room"):
        write_comparison(comparison(), tmp_path / "file")


def circles(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]


def test_course_chart_has_a_line_and_dots_for_each_run() -> None:
    lines = [
        Line("a", [Point(10.0, 0.0, "step 1"), Point(40.0, 1.0, "step 2")]),
        Line("<b>", [Point(20.0, 0.5, "<i>")]),
    ]
    svg = course_svg(lines, "<label>")
    assert svg.count("<polyline") == 2
    places = circles(svg)
    wide = WIDTH - LEFT - RIGHT
    assert [x for x, _ in places] == pytest.approx([LEFT + wide / 4, LEFT + wide, LEFT + wide / 2], abs=0.06)
    assert places[0][1] > places[2][1] > places[1][1], "better is higher"
    assert all(0 < y < HEIGHT for _, y in places)
    assert "<i>" not in svg
    assert "<b>" not in svg
    assert "<title>&lt;b&gt;: &lt;i&gt;; 0.5 at 20 s</title>" in svg
    assert course_svg([Line("a", [])], "x") == ""


def test_pareto_chart_is_logarithmic_and_rings_the_front() -> None:
    points = [Point(0.1, 0.2, "fast"), Point(1.0, 0.1, "beaten"), Point(10.0, 0.9, "slow")]
    svg = pareto_svg([Line("a", points[:1]), Line("b", points[1:])], "x")
    (first, _), (second, _), (third, _) = circles(svg)
    assert second - first == pytest.approx(third - second, abs=0.11), "equal factors are equal steps"
    rings = [title for ring, title in re.findall(r"<circle [^>]*?(stroke=)?[^>]*><title>([^<]*)", svg)]
    assert len(rings) == 3
    assert re.findall(r'stroke-width="1.6"><title>([^;]*);', svg) == ["a: fast", "b: slow"]
    assert pareto_svg([], "x") == ""
    assert circles(pareto_svg([Line("a", [Point(1.0, 0.0, "alone")])], "x"))


def test_bounds_leave_air_also_around_one_value() -> None:
    assert bounds([0.0, 1.0]) == pytest.approx((-0.08, 1.08))
    low, high = bounds([0.0])
    assert low < 0 < high
    low, high = bounds([-2.0, -2.0])
    assert low < -2 < high


def test_sheet_has_a_block_a_task_and_no_column_of_references_where_there_are_none() -> None:
    rows = comparison().rows
    sheet = comparison_sheet(rows, ["ar", "naïve ☃ with a very long name"])
    assert sheet.width == 34 * 3 + 34 * 4 + 2 * 6 + 3 * 6
    pixels = np.asarray(sheet)
    top = 6 + 28
    assert np.array_equal(pixels[top : top + 32 : 2, 6 : 6 + 32 : 2], rows[0].target)
    assert comparison_sheet(rows, ["ar", "b"], across=1).height > sheet.height
    with pytest.raises(ValueError, match="at least one row"):
        comparison_sheet([], ["a"])


def test_rows_are_the_same_examples_of_all_runs() -> None:
    def cases(seed: int) -> dict[str, list[Case]]:
        return {"segment": [Case("segment", "k", "a cup", picture(0), picture(1), picture(seed), {"iou": 1.0})]}

    (row,) = side_by_side([cases(2), cases(3)])
    assert (row.task, row.prompt, len(row.pictures)) == ("segment", "a cup", 4)
    assert np.array_equal(row.outputs[1], picture(3))
