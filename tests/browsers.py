"""A real headless Chromium on the page of a server.

    with Browser() as browser:
        browser.open(served)
        browser.press("#decode")
        browser.until_ended()
        browser.check()                 # no request to another origin, no error of a script

It needs `apt-get install chromium chromium-driver`.
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
    """The paths of Chromium and its driver, or None if one of them is not installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(found() is None, reason="no Chromium: apt-get install chromium chromium-driver"),
]
OPTIONS = {"decoder": "fixed", "block_length": "8"}  # options of every decode, as typed into the form
BODY: dict[str, Any] = {"decoder": "fixed", "block_length": 8}  # the same as JSON for the API
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
        """Open the page of `served` in a window of `size` pixels."""
        self.origin = f"http://{served.host}:{served.port}"
        self.command(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get("about:blank")
        self.asked(), self.refused()  # drop those of earlier pages
        self.driver.get(self.origin)

    def command(self, name: str, **parameters: Any) -> Any:
        """Run a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def find(self, selector: str) -> WebElement:
        """The first element that matches the CSS `selector`."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The exact text of the first element that matches."""
        return str(self.script("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match."""
        return list(
            self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)
        )

    def script(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript, and return its result."""
        return self.driver.execute_script(code, *arguments)

    def press(self, selector: str) -> None:
        """Click on an element."""
        self.find(selector).click()

    def write(self, selector: str, text: object) -> None:
        """Replace the text of a field."""
        field = self.find(selector)
        field.clear()
        field.send_keys(str(text))

    def choose(self, setting: int, **options: str) -> None:
        """Fill in options of a setting: select them in lists, and type them into fields."""
        for name, value in options.items():
            self.script(
                "const field = document.querySelectorAll('.setting')[arguments[0]].querySelector(arguments[1]);"
                "field.value = arguments[2]; field.dispatchEvent(new Event('change', { bubbles: true }));",
                setting, f"[name={name}]", value,
            )  # fmt: skip

    def luminance(self, selector: str) -> float:
        """The relative luminance of an element's background, 0 to 1 (WCAG 2.2)."""
        return float(self.script(_COLOURS + "return ground", selector))

    def contrast(self, selector: str) -> float:
        """The contrast ratio of an element's text to its background, 1 to 21 (WCAG 2.2)."""
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
        """The texts of the canvas's cells in a panel."""
        return self.texts(f".panel:nth-child({number}) .canvas .cell")

    def until_ended(self) -> None:
        """Wait until no decode is running."""
        until(lambda: self.find("#cancel").get_property("disabled"))

    def refused(self) -> list[str]:
        """The errors of scripts and of the network since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def asked(self) -> list[str]:
        """The URLs of all requests since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def check(self) -> None:
        """Assert that no request went to another origin and that there was no error."""
        urls = self.asked()
        assert urls and all(url.startswith(f"{self.origin}/") for url in urls), urls
        assert self.refused() == []

    def __enter__(self) -> Self:
        self.driver.set_page_load_timeout(SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        self.driver.quit()
        self._home.cleanup()
