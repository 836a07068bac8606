"""The files of a comparison."""

import io
import json
from pathlib import Path

from mentor.comparing.comparison import Comparison, as_json
from mentor.comparing.page import render_page
from mentor.comparing.pictures import comparison_sheet
from mentor.comparing.tables import markdown
from mentor.evaluation.files import write_files

PAGE = "compare.html"
NUMBERS = "compare.json"
TABLE = "compare.md"
SHEET = "pictures.png"


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Write page, table, pictures and numbers, each file whole or not at all; earlier ones are replaced.

    Raises:
        UserError: a file cannot be written.
    """
    files: dict[str | Path, bytes] = {PAGE: render_page(comparison).encode(), TABLE: markdown(comparison).encode()}
    if comparison.rows:
        buffer = io.BytesIO()
        comparison_sheet(comparison.rows, comparison.names).save(buffer, "PNG")
        files[SHEET] = buffer.getvalue()
    # The numbers last: where they are, all the rest is too.
    files[NUMBERS] = (json.dumps(as_json(comparison), indent=2, allow_nan=False) + "\n").encode()
    write_files(files, output, "--output DIR")
