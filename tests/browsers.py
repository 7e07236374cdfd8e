"""A real Chromium without a window, on the page of a server.

    with Browser() as browser:
        browser.open(served)
        browser.press("#decode")
        browser.until_ended()
        browser.check()                 # nothing was asked of another origin, and no script complained

`apt-get install chromium chromium-driver` brings what it needs.
"""

import json
import shutil
import tempfile
from typing import Any, Self

import pytest
from passes import SECONDS, until
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from servers import Served

_COLOURS = """
const shade = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const light = (...colours) => {
  for (const colour of ['white', ...colours]) { shade.fillStyle = colour; shade.fillRect(0, 0, 1, 1); }
  const [r, g, b] = [...shade.getImageData(0, 0, 1, 1).data].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const own = element => getComputedStyle(element).backgroundColor;
const grounds = element => element ? [...grounds(element.parentElement), own(element)] : [];
const element = document.querySelector(arguments[0]);
const ground = light(...grounds(element)), text = light(...grounds(element), getComputedStyle(element).color);
"""
WIDE, NARROW = (1280, 900), (360, 740)


def found() -> tuple[str, str] | None:
    """Chromium and its driver, where both are installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(found() is None, reason="no Chromium: apt-get install chromium chromium-driver"),
]
OPTIONS = {"decoder": "fixed", "block_length": "8"}  # of every decode, as they are typed
BODY: dict[str, Any] = {"decoder": "fixed", "block_length": 8}  # ... and as the API takes them
PROMPT = "w5 w6 w7 w9"


class Browser:
    """One window with one page."""

    def __init__(self) -> None:
        programs = found()
        assert programs
        chromium, driver = programs
        self._home = tempfile.TemporaryDirectory()
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
            options.add_argument(f"--{argument}")
        options.add_argument(f"--user-data-dir={self._home.name}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.origin = ""

    def open(self, served: Served, size: tuple[int, int] = WIDE, *, dark: bool = False) -> None:
        """The page of `served`, in a window of so many pixels."""
        self.origin = f"http://{served.host}:{served.port}"
        self.command(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get("about:blank")
        self.asked(), self.refused()  # of the pages before
        self.driver.get(self.origin)

    def command(self, name: str, **parameters: Any) -> Any:
        """One of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def find(self, selector: str) -> WebElement:
        """The first that CSS's `selector` means."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """All of its text, character by character."""
        return str(self.script("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        """... of each."""
        return list(
            self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)
        )

    def script(self, code: str, *arguments: Any) -> Any:
        """What JavaScript gives."""
        return self.driver.execute_script(code, *arguments)

    def press(self, selector: str) -> None:
        """A click."""
        self.find(selector).click()

    def write(self, selector: str, text: object) -> None:
        """Into a field, in place of what it holds."""
        field = self.find(selector)
        field.clear()
        field.send_keys(str(text))

    def choose(self, setting: int, **options: str) -> None:
        """Fill in options of a setting: what can be chosen is chosen, what can be typed is typed."""
        for name, value in options.items():
            self.script(
                "const field = document.querySelectorAll('.setting')[arguments[0]].querySelector(arguments[1]);"
                "field.value = arguments[2]; field.dispatchEvent(new Event('change', { bubbles: true }));",
                setting, f"[name={name}]", value,
            )  # fmt: skip

    def luminance(self, selector: str) -> float:
        """Of the ground of an element, from 0 to 1, as WCAG 2.2 defines it."""
        return float(self.script(_COLOURS + "return ground", selector))

    def contrast(self, selector: str) -> float:
        """... of its text to that, from 1 to 21."""
        ratio = "return (Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05)"
        return float(self.script(_COLOURS + ratio, selector))

    def ask(self, prompt: str = PROMPT, tokens: int = 16, kind: str = "completion", **options: str) -> None:
        """Fill in the form, and press Decode."""
        self.press(f"[value={kind}]")
        self.write("#prompt", prompt)
        self.write("#tokens", tokens)
        self.choose(0, **{**OPTIONS, **options})
        self.press("#decode")

    def cells(self, number: int = 1) -> list[str]:
        """The canvas of a panel."""
        return self.texts(f".panel:nth-child({number}) .canvas .cell")

    def until_ended(self) -> None:
        """Nothing is being decoded any more."""
        until(lambda: self.find("#cancel").get_property("disabled"))

    def refused(self) -> list[str]:
        """What scripts and the network complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def asked(self) -> list[str]:
        """URLs of all requests since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def check(self) -> None:
        """Nothing went to another origin, and nothing complained."""
        urls = self.asked()
        assert urls and all(url.startswith(f"{self.origin}/") for url in urls), urls
        assert self.refused() == []

    def __enter__(self) -> Self:
        self.driver.set_page_load_timeout(SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        self.driver.quit()
        self._home.cleanup()
