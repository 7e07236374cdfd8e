"""The server's page in a real Chromium when something is refused, fails, is cancelled, or needs a key."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import IN_BROWSER, OPTIONS, PROMPT, WIDE, Browser
from passes import until
from selenium.webdriver.common.keys import Keys
from servers import LONG, SLOW, Served

pytestmark = IN_BROWSER
KEY = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def served(whole: Path) -> Iterator[Served]:
    with Served(whole) as server:
        yield server


def test_errors_are_shown_in_words(page: Browser, served: Served) -> None:
    """Fails if what the API refuses is not said on the page, or the page cannot go on after it."""
    page.ask(threshold="7", decoder="threshold")
    page.until_ended()
    _, _, told = served.post("/v1/completions", {"prompt": PROMPT, "decoder": "threshold", "threshold": 7.0})
    assert page.find(".panel .error").is_displayed()
    assert page.text(".panel .error") == told["error"]["message"] != ""
    assert all("400" in each for each in page.refused())
    page.ask(threshold="")
    page.until_ended()
    assert not page.find(".panel .error").is_displayed() and page.text(".text") != ""


def test_what_fails_on_the_way_is_said(chromium: Browser, whole: Path, endless: str) -> None:
    """Fails if a decode that ends with an error, or with the server, looks as if it had gone well."""
    with Served(whole, pass_seconds=SLOW, broken=20) as server:
        chromium.open(server)
        for number, words in enumerate(("engine failed in a pass", "connection broke", "cannot be reached")):
            chromium.ask(endless, LONG["max_tokens"], cache="prefix", schedule="none")
            if number == 1:
                until(lambda: int(chromium.text("[data-number=passes]")) > 2)
                server.process.kill()
            chromium.until_ended()
            assert words in chromium.text(".panel .error") and chromium.text(".status") == ""
            if number < 2:
                assert chromium.text("[data-number=passes]") != "0"
        assert all("ERR_" in each for each in chromium.refused())


def test_a_deadline_is_told(chromium: Browser, whole: Path, endless: str) -> None:
    """Fails if an answer that its deadline ended is not shown as one."""
    with Served(whole, pass_seconds=SLOW) as server:
        chromium.open(server)
        chromium.write("#deadline", 700)
        chromium.ask(endless, LONG["max_tokens"], cache="prefix", schedule="none")
        chromium.until_ended()
        assert chromium.text(".status").startswith("The deadline has come: ")
        chromium.check()


def test_what_is_changed_meanwhile_counts_next_time(chromium: Browser, whole: Path, endless: str) -> None:
    """Fails if the second of two settings is decoded with options that its panel does not name."""
    with Served(whole, pass_seconds=SLOW) as server:
        chromium.open(server)
        chromium.press("#compare")
        chromium.choose(1, **OPTIONS, schedule="none")
        chromium.ask(endless, 64)
        until(lambda: int(chromium.text("[data-number=passes]")) > 2)
        chromium.choose(1, threshold="7", decoder="threshold")
        chromium.until_ended()
        assert chromium.texts("h2")[1] == "B · full suffix, decoder fixed, block length 8"
        assert chromium.cells(1) == chromium.cells(2) and "·" not in chromium.cells(2)
        chromium.check()


def test_markup_of_a_model_stays_text(page: Browser) -> None:
    """Fails if something that was written becomes an element of the page."""
    page.press("[value=infill]")
    field = page.find("#template textarea")
    field.clear()
    field.send_keys("<img src=x onerror=document.title='gone'> w5 ")
    page.press("#decode")
    page.until_ended()
    assert "<img src=x" in page.text(".text") and page.texts("img") == [] and page.driver.title == "dpad"


def test_cancelling_ends_the_stream(chromium: Browser, whole: Path, endless: str) -> None:
    """Fails if Cancel or Escape leaves the server decoding, or takes away what was decided."""
    with Served(whole, pass_seconds=SLOW) as server:
        for number, cancel in enumerate((lambda: chromium.press("#cancel"), lambda: press_escape(chromium)), 1):
            chromium.open(server)
            chromium.ask(endless, LONG["max_tokens"], cache="prefix", schedule="none")
            until(lambda: int(chromium.text("[data-number=passes]")) > 2)
            cancel()
            chromium.until_ended()
            assert chromium.text(".status") == "Cancelled."
            assert 0 < int(chromium.text("[data-number=decided]")) < LONG["max_tokens"]
            until(lambda: cancelled(server) == number)  # noqa: B023
        chromium.check()


def cancelled(server: Served) -> int:
    """Sequences that ended so."""
    found = re.search(r'finished_total{reason="cancelled"} (\d+)', server.ask("GET", "/metrics")[2])
    return int(found[1]) if found else 0


def press_escape(browser: Browser) -> None:
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)


def test_a_server_with_keys_asks_for_one(chromium: Browser, whole: Path, tmp_path: Path) -> None:
    """Fails if the page does not work with a key, keeps it beyond a reload, or hides that it is wrong."""
    (tmp_path / "keys.txt").write_text(KEY)
    with Served(whole, "--api-key-file", tmp_path / "keys.txt") as server:
        chromium.open(server, WIDE)
        until(lambda: chromium.find("#key").is_displayed())
        assert "asks for a key" in chromium.text(".error")
        chromium.write("#key", "wrong" + KEY + Keys.TAB)
        until(lambda: "does not know this key" in chromium.text(".error"))
        chromium.write("#key", KEY + Keys.TAB)
        until(lambda: chromium.text("#model"))
        assert all("401" in each for each in chromium.refused())
        chromium.ask()
        chromium.until_ended()
        assert chromium.text(".text") != "" and not chromium.find(".error").is_displayed()
        kept = "return [localStorage.length, sessionStorage.length, document.cookie]"
        assert chromium.script(kept) == [0, 0, ""]
        chromium.check()
        chromium.driver.refresh()
        assert chromium.find("#key").get_property("value") == ""
        until(lambda: chromium.text(".error"))
        chromium.refused()
