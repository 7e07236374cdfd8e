"""The server's page in a real Chromium, held against the API that it calls."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import NARROW, WIDE, Browser, found
from passes import until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from servers import LONG, SLOW, Served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(found() is None, reason="no Chromium: apt-get install chromium chromium-driver"),
]

KEY = "sk-0123456789abcdef"
OPTIONS = {"decoder": "fixed", "block_length": "8"}
BODY: dict[str, Any] = {"decoder": "fixed", "block_length": 8}
PROMPT = "w5 w6 w7 w9"
MASK = "·"


@pytest.fixture(scope="module")
def served(whole: Path) -> Iterator[Served]:
    with Served(whole) as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    programs = found()
    assert programs
    with Browser(programs) as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser, served: Served) -> Iterator[Browser]:
    """The page, newly loaded; a test must leave no complaint and no request to elsewhere."""
    chromium.open(served)
    until(lambda: chromium.text("#model"))
    yield chromium
    chromium.check()


def ask(page: Browser, prompt: str = PROMPT, tokens: int = 16, kind: str = "completion", **options: str) -> None:
    """Fill in the form and press Decode."""
    page.press(f"[value={kind}]")
    page.write("#prompt", prompt)
    page.write("#tokens", tokens)
    page.choose(0, **{**OPTIONS, **options})
    page.press("#decode")


def cells(page: Browser, number: int = 1) -> list[str]:
    return page.texts(f".panel:nth-child({number}) .canvas .cell")


def scrub(page: Browser, count: int) -> None:
    """Move the slider to a pass."""
    page.script(
        "const s = document.querySelector('.scrub input'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        count,
    )


def revisions(served: Served, path: str, **body: Any) -> list[Any]:
    """What the API says of every pass."""
    status, _, text = served.post(path, {**BODY, **body, "stream": True, "revisions": True})
    assert status == 200, text
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line[6:7] == "{"]
    return [choice["revision"] for event in events for choice in event["choices"] if "revision" in choice]


def folded(passes: list[Any], length: int) -> list[str]:
    """The canvas after some passes."""
    canvas = [MASK] * length
    for each in passes:
        for place, text in zip(each["positions"], each["texts"]):
            canvas[place] = text
    return canvas


@pytest.mark.parametrize("kind, prompt", [("completion", PROMPT), ("chat", "w12")])
def test_a_prompt_is_decoded(page: Browser, served: Served, kind: str, prompt: str) -> None:
    """Fails if the page's text is not the API's, its canvas not what the passes decided, or its numbers not theirs."""
    messages = {"prompt": prompt} if kind == "completion" else {"messages": [{"role": "user", "content": prompt}]}
    path = "/v1/completions" if kind == "completion" else "/v1/chat/completions"
    _, _, told = served.post(path, {**BODY, **messages, "max_tokens": 16, "schedule": "none"})
    ask(page, prompt, kind=kind, schedule="none")
    page.until_ended()
    choice = told["choices"][0]
    assert page.text(".text") == (choice["text"] if kind == "completion" else choice["message"]["content"]) != ""
    passes = revisions(served, path, **messages, max_tokens=16, schedule="none")
    assert cells(page) == folded(passes, 16)
    assert page.text("[data-number=passes]") == str(told["usage"]["passes"])
    assert f"{told['usage']['completion_tokens']} tokens in the answer" in page.text(".status")
    assert float(page.text("[data-number=speed]")) > 0 and page.text("#model") == "bundle"


def test_earlier_passes_can_be_seen_again(page: Browser, served: Served) -> None:
    """Fails if the slider or a key shows another state than that after so many passes, or confidence has no shade."""
    ask(page)
    page.until_ended()
    passes = revisions(served, "/v1/completions", prompt=PROMPT, max_tokens=16)
    last = page.text(".text")
    for count in (0, 3, len(passes) - 1, 1, len(passes)):
        scrub(page, count)
        assert cells(page) == folded(passes[:count], 16)
        assert page.text("output") == f"{count} of {len(passes)}" and last.startswith(page.text(".text"))
        assert page.text("[data-number=decided]") == str(16 - cells(page).count(MASK))
    canvas, shown = page.find(".canvas"), len(passes)
    for key, count in [(Keys.HOME, 0), (Keys.RIGHT, 1), (Keys.RIGHT, 2), (Keys.LEFT, 1), (Keys.END, shown)]:
        canvas.send_keys(key)
        assert cells(page) == folded(passes[:count], 16)
    page.find(".scrub input").send_keys(Keys.LEFT)
    assert cells(page) == folded(passes[: shown - 1], 16)
    scrub(page, shown)
    for each in passes:
        for place, sure in zip(each["positions"], each["confidences"]):
            style = f"return document.querySelectorAll('.canvas .cell')[{place}].style.getPropertyValue('--sure')"
            assert float(page.script(style)) == pytest.approx(sure, abs=1e-3)
    canvas.send_keys(Keys.DOWN)
    assert f"Place 0: {json.dumps(folded(passes, 16)[0])}, token" in page.text(".told")


def test_passes_are_played(page: Browser) -> None:
    """Fails if Play does not go through the passes from the first to the last."""
    ask(page)
    page.until_ended()
    last = cells(page)
    page.press(".play")
    assert MASK in cells(page) and page.text(".play") == "Pause"
    until(lambda: page.text(".play") == "Play")
    assert cells(page) == last


def test_blanks_are_filled_and_the_given_text_comes_back(page: Browser, served: Served) -> None:
    """Fails if typed text is changed, a blank is not the API's, or blanks cannot be put in and taken out."""
    page.press("[value=infill]")
    while len(page.texts("#template .blank")) > 1:
        page.press("#template .blank button")
    first, second = page.driver.find_elements(By.CSS_SELECTOR, "#template textarea")
    first.clear()
    first.send_keys("w5  w6 ")
    second.clear()
    second.send_keys(" w70\nw71  <b>&amp; w80 ")
    second.send_keys(*[Keys.LEFT] * 5)
    page.press("#add-blank")
    for field, tokens in zip(page.driver.find_elements(By.CSS_SELECTOR, "#template .blank input"), (5, 3)):
        field.clear()
        field.send_keys(str(tokens))
    template = ["w5  w6 ", {"tokens": 5}, " w70\nw71  <b>&amp;", {"tokens": 3}, " w80 "]
    page.choose(0, **OPTIONS)
    page.press("#decode")
    page.until_ended()
    _, _, told = served.post("/v1/infill", {**BODY, "template": template})
    [choice] = told["choices"]
    assert page.text(".text") == choice["text"] and page.texts(".text ins") == choice["blanks"]
    assert page.texts(".canvas .given") == [part for part in template if isinstance(part, str)]
    assert len(cells(page)) == 8 and MASK not in cells(page)
    scrub(page, 0)
    assert cells(page) == [MASK] * 8


def test_two_settings_stand_side_by_side(page: Browser, served: Served) -> None:
    """Fails if a panel shows the answer to another setting than the one that it names, or they are not side by side."""
    page.press("#compare")
    page.choose(1, **OPTIONS, schedule="uniform", count="0")
    ask(page, tokens=32)
    page.until_ended()
    for number, schedule in ((1, "none"), (2, {"uniform": {"count": 0}})):
        body = {"prompt": PROMPT, "max_tokens": 32, "schedule": schedule}
        assert cells(page, number) == folded(revisions(served, "/v1/completions", **body), 32)
        assert page.text(f".panel:nth-child({number}) .text") == told_text(served, **body)
    assert [text.split(",")[0] for text in page.texts("h2")] == ["A · full suffix", "B · DPad uniform"]
    one, two = (each.rect for each in page.driver.find_elements(By.CSS_SELECTOR, ".panel"))
    assert one["y"] == two["y"] and one["x"] + one["width"] < two["x"]


def told_text(served: Served, **body: Any) -> str:
    return str(served.post("/v1/completions", {**BODY, **body})[2]["choices"][0]["text"])


def test_the_keyboard_is_enough(page: Browser, served: Served) -> None:
    """Fails if someone without a mouse cannot write a prompt, decode it, and go through the passes."""
    page.choose(0, **OPTIONS)
    page.script("document.querySelector('[value=chat]').focus()")
    act = page.driver.switch_to
    act.active_element.send_keys(Keys.RIGHT)
    act.active_element.send_keys(Keys.TAB)
    act.active_element.send_keys(Keys.CONTROL, "a", Keys.NULL, PROMPT)
    act.active_element.send_keys(Keys.TAB)
    act.active_element.send_keys(Keys.CONTROL, "a", Keys.NULL, "16")
    act.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
    page.until_ended()
    assert page.text(".text") == told_text(served, prompt=PROMPT, max_tokens=16)
    until(lambda: act.active_element.send_keys(Keys.TAB) or "canvas" in act.active_element.get_attribute("class"))
    act.active_element.send_keys(Keys.HOME)
    assert set(cells(page)) == {MASK}


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_needs_no_scrolling_sideways(page: Browser, served: Served, dark: bool) -> None:
    """Fails if the page is wider than a phone, or its dark form is not dark, or text is hard to read on its ground."""
    page.open(served, NARROW, dark=dark)
    page.press("#compare")
    page.script("for (const each of document.querySelectorAll('details')) each.open = true")
    ask(page, tokens=32)
    page.until_ended()
    page.press("[value=infill]")
    width = page.script("return document.documentElement.scrollWidth")
    assert width == NARROW[0]
    page.script("document.querySelector('.canvas .cell').classList.add('special')")
    for selector in ("body", ".canvas .decided:not(.special)", ".canvas .special", "#decode", ".status", "dt", ".text"):
        assert page.contrast(selector) >= 4.5, selector
    assert (page.luminance("body") < 0.2) == dark


def test_errors_are_shown_in_words(page: Browser, served: Served) -> None:
    """Fails if what the API refuses is not said on the page, or the page cannot go on after it."""
    ask(page, threshold="7", decoder="threshold")
    page.until_ended()
    _, _, told = served.post("/v1/completions", {"prompt": PROMPT, "decoder": "threshold", "threshold": 7.0})
    assert page.find(".panel .error").is_displayed()
    assert page.text(".panel .error") == told["error"]["message"] != ""
    assert all("400" in each for each in page.refused())
    ask(page, threshold="")
    page.until_ended()
    assert not page.find(".panel .error").is_displayed() and page.text(".text") != ""


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
            ask(chromium, endless, LONG["max_tokens"], cache="prefix", schedule="none")
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
        ask(chromium)
        chromium.until_ended()
        assert chromium.text(".text") != "" and not chromium.find(".error").is_displayed()
        kept = "return [localStorage.length, sessionStorage.length, document.cookie]"
        assert chromium.script(kept) == [0, 0, ""]
        chromium.check()
        chromium.driver.refresh()
        assert chromium.find("#key").get_property("value") == ""
        until(lambda: chromium.text(".error"))
        chromium.refused()
