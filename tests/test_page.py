"""The server's page, as HTTP gives it; what it does is tried in a browser (test_page_browser, test_page_trouble)."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Served

WEB = Path(__file__).resolve().parent.parent / "serving" / "web"
KEY = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def served(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY)
    with Served(whole, "--api-key-file", keys) as server:
        yield server


def test_the_page_is_open_and_nothing_else(served: Served) -> None:
    """Fails if a browser needs a key to load the page that asks for it, or the page opens what needs one."""
    status, headers, body = served.ask("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body == (WEB / "index.html").read_text()
    for path in WEB.iterdir():
        assert served.ask("GET", f"/page/{path.name}")[2] == path.read_text()
    for path in ("/v1/models", "/metrics", "/page/x", "/page/%2e%2e%2fapp.py", "/page"):
        assert served.ask("GET", path)[0] == 401
    assert served.ask("GET", "/page/x", authorization=f"Bearer {KEY}")[0] == 404


def test_browsers_are_told_what_the_page_may_do(served: Served) -> None:
    """Fails if the page could load from elsewhere, run what is written into it, or be framed."""
    for path in ("/", *(f"/page/{path.name}" for path in WEB.iterdir())):
        headers = served.ask("GET", path)[1]
        policy = dict(rule.strip().partition(" ")[::2] for rule in headers["content-security-policy"].split(";"))
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_a_foreign_name_gets_no_page(whole: Path) -> None:
    """Fails if the page of a server without keys answers to names that are not its machine's."""
    with Served(whole) as server:
        assert server.ask("GET", "/", host="example.org")[0] == 403
        assert server.ask("GET", "/")[0] == 200


def test_the_files_name_one_another() -> None:
    """Fails if a file is missing, is used by nobody, or has markup, styles or scripts that its policy stops."""
    texts = {path.name: path.read_text() for path in WEB.iterdir()}
    named = {name for text in texts.values() for name in re.findall(r'(?:"page/|from "\./)([\w.]+)"', text)}
    assert named | {"index.html"} == set(texts)
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script>|https?:", texts["index.html"])
    for name, text in texts.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name
        assert len(text.splitlines()) <= 300 or name.endswith(".css"), name
