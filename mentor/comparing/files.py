"""The files of a comparison."""

import io
import json
import os
from pathlib import Path

from mentor.comparing.comparison import Comparison, as_json
from mentor.comparing.page import render_page
from mentor.comparing.pictures import comparison_sheet
from mentor.comparing.tables import markdown
from mentor.errors import UserError

PAGE = "compare.html"
NUMBERS = "compare.json"
TABLE = "compare.md"
SHEET = "pictures.png"


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Write page, table, pictures and numbers, each file whole or not at all; earlier ones are replaced.

    Raises:
        UserError: a file cannot be written.
    """
    files = {PAGE: render_page(comparison).encode(), TABLE: markdown(comparison).encode()}
    if comparison.rows:
        buffer = io.BytesIO()
        comparison_sheet(comparison.rows, comparison.names).save(buffer, "PNG")
        files[SHEET] = buffer.getvalue()
    # The numbers last: where they are, all the rest is too.
    files[NUMBERS] = (json.dumps(as_json(comparison), indent=2, allow_nan=False) + "\n").encode()
    for name, content in files.items():
        path = output / name
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({error.strerror}): choose another --output DIR or make room"
            ) from error
