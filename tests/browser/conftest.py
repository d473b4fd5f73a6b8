"""Headless Chromium on the real service."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver

from tests.service import Service

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--force-prefers-reduced-motion",
)  # fmt: skip


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Driver(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium: webdriver.Chrome, service: Service, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """The shop's page at desktop width, as a new visitor sees it. At the end: no console error, no outside request."""
    chromium.set_window_size(1280, 900)
    chromium.get(service.url)
    chromium.execute_script("sessionStorage.clear()")
    chromium.get_log("browser")
    chromium.get_log("performance")
    yield chromium
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []
    outside = [url for url in requested(chromium) if not url.startswith((service.url, "data:", "about:"))]
    assert outside == []


def requested(browser: webdriver.Chrome) -> list[str]:
    """URLs that the page has asked for."""
    import json

    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
