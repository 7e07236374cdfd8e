"""The server's page in a real Chromium, held against the API that it calls."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import BODY, IN_BROWSER, NARROW, OPTIONS, PROMPT, Browser
from passes import until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from servers import Served

pytestmark = IN_BROWSER
MASK = "·"


@pytest.fixture(scope="module")
def served(whole: Path) -> Iterator[Served]:
    with Served(whole) as server:
        yield server


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
    page.ask(prompt, kind=kind, schedule="none")
    page.until_ended()
    choice = told["choices"][0]
    assert page.text(".text") == (choice["text"] if kind == "completion" else choice["message"]["content"]) != ""
    passes = revisions(served, path, **messages, max_tokens=16, schedule="none")
    assert page.cells() == folded(passes, 16)
    assert page.text("[data-number=passes]") == str(told["usage"]["passes"])
    assert f"{told['usage']['completion_tokens']} tokens in the answer" in page.text(".status")
    assert float(page.text("[data-number=speed]")) > 0 and page.text("#model") == "bundle"


def test_earlier_passes_can_be_seen_again(page: Browser, served: Served) -> None:
    """Fails if the slider or a key shows another state than that after so many passes, or confidence has no shade."""
    page.ask()
    page.until_ended()
    passes = revisions(served, "/v1/completions", prompt=PROMPT, max_tokens=16)
    last = page.text(".text")
    for count in (0, 3, len(passes) - 1, 1, len(passes)):
        scrub(page, count)
        assert page.cells() == folded(passes[:count], 16)
        assert page.text("output") == f"{count} of {len(passes)}" and last.startswith(page.text(".text"))
        assert page.text("[data-number=decided]") == str(16 - page.cells().count(MASK))
    canvas, shown = page.find(".canvas"), len(passes)
    for key, count in [(Keys.HOME, 0), (Keys.RIGHT, 1), (Keys.RIGHT, 2), (Keys.LEFT, 1), (Keys.END, shown)]:
        canvas.send_keys(key)
        assert page.cells() == folded(passes[:count], 16)
    page.find(".scrub input").send_keys(Keys.LEFT)
    assert page.cells() == folded(passes[: shown - 1], 16)
    scrub(page, shown)
    for each in passes:
        for place, sure in zip(each["positions"], each["confidences"]):
            style = f"return document.querySelectorAll('.canvas .cell')[{place}].style.getPropertyValue('--sure')"
            assert float(page.script(style)) == pytest.approx(sure, abs=1e-3)
    canvas.send_keys(Keys.DOWN)
    assert f"Place 0: {json.dumps(folded(passes, 16)[0])}, token" in page.text(".told")


def test_passes_are_played(page: Browser) -> None:
    """Fails if Play does not go through the passes from the first to the last."""
    page.ask()
    page.until_ended()
    last = page.cells()
    page.press(".play")
    assert MASK in page.cells() and page.text(".play") == "Pause"
    until(lambda: page.text(".play") == "Play")
    assert page.cells() == last


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
    assert len(page.cells()) == 8 and MASK not in page.cells()
    scrub(page, 0)
    assert page.cells() == [MASK] * 8


def test_two_settings_stand_side_by_side(page: Browser, served: Served) -> None:
    """Fails if a panel shows the answer to another setting than the one that it names, or they are not side by side."""
    page.press("#compare")
    page.choose(1, **OPTIONS, schedule="uniform", count="0")
    page.ask(tokens=32)
    page.until_ended()
    for number, schedule in ((1, "none"), (2, {"uniform": {"count": 0}})):
        body = {"prompt": PROMPT, "max_tokens": 32, "schedule": schedule}
        assert page.cells(number) == folded(revisions(served, "/v1/completions", **body), 32)
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
    assert set(page.cells()) == {MASK}


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_needs_no_scrolling_sideways(page: Browser, served: Served, dark: bool) -> None:
    """Fails if the page is wider than a phone, or its dark form is not dark, or text is hard to read on its ground."""
    page.open(served, NARROW, dark=dark)
    page.press("#compare")
    page.script("for (const each of document.querySelectorAll('details')) each.open = true")
    page.ask(tokens=32)
    page.until_ended()
    wide = "return document.documentElement.scrollWidth"
    assert page.script(wide) == NARROW[0]
    page.script("document.querySelector('.canvas .cell').classList.add('special')")
    for selector in ("body", ".canvas .decided:not(.special)", ".canvas .special", "#decode", ".status", "dt", ".text"):
        assert page.contrast(selector) >= 4.5, selector
    assert (page.luminance("body") < 0.2) == dark
    page.press("[value=infill]")
    page.write("#template textarea", "w5" * 60)
    page.press("#decode")
    page.until_ended()
    assert page.script(wide) == NARROW[0]
