"""What the tests of data share: a web server, and asserts in shared modules that say what they compared."""

from collections.abc import Iterator

import pytest
from webserver import Web, running

pytest.register_assert_rewrite("codepacks", "damaging", "foreigntars", "noise", "stepping", "streams")


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Web()
    with running(server):
        yield server
