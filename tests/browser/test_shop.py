"""A person shops: by mouse, by keyboard alone, and on a phone."""

import re
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.conftest import SHOPPERS
from tests.service import Service

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.browser]


def css(testid: str) -> tuple[str, str]:
    return By.CSS_SELECTOR, f'[data-testid="{testid}"]'


def all_of(page: Chrome, testid: str) -> list[WebElement]:
    return page.find_elements(*css(testid))


def one(page: Chrome, testid: str) -> WebElement:
    return WebDriverWait(page, 10).until(lambda _: page.find_element(*css(testid)))


def settled(page: Chrome) -> None:
    """No request for results is under way."""
    WebDriverWait(page, 15).until(lambda _: not all_of(page, "loading"))


def ids(page: Chrome) -> list[str]:
    settled(page)
    return [str(card.get_attribute("data-item-id")) for card in all_of(page, "card")]


def count(page: Chrome) -> int:
    settled(page)
    return int(re.sub(r"\D", "", re.findall(r"[\d,.]+", one(page, "result-count").text)[0]))


def search(page: Chrome, text: str) -> None:
    box = one(page, "search-input")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text, Keys.ENTER)
    WebDriverWait(page, 15).until(lambda _: "q=" in page.current_url)
    settled(page)


def test_search_shows_what_the_api_finds(page: Chrome, service: Service, tmp_path: Path):
    search(page, "frozen pizza")
    found = service.search("frozen pizza", page_size=24)
    assert ids(page) == [hit["item_id"] for hit in found["hits"]]
    assert count(page) == found["total"]
    titles = [title.text for title in all_of(page, "card-title")]
    assert titles == [hit["item"]["title"] for hit in found["hits"]]
    page.save_screenshot(str(tmp_path / "search.png"))


def test_a_filters_count_is_what_choosing_it_finds(page: Chrome):
    search(page, "milk")
    before = count(page)
    value = one(page, "filter-brand").find_elements(By.CSS_SELECTOR, "[data-value]")[0]
    told = int(re.sub(r"\D", "", value.find_element(By.CLASS_NAME, "count").text))
    value.click()
    WebDriverWait(page, 10).until(lambda _: all_of(page, "chip"))
    assert count(page) == told <= before
    one(page, "clear-filters").click()
    WebDriverWait(page, 10).until(lambda _: not all_of(page, "chip"))
    assert count(page) == before


def test_more_results_follow_without_repeating_any(page: Chrome):
    search(page, "bread")
    first = ids(page)
    one(page, "load-more").click()
    WebDriverWait(page, 10).until(lambda _: len(all_of(page, "card")) > len(first))
    both = ids(page)
    assert both[: len(first)] == first
    assert len(set(both)) == len(both)


def test_sorting_by_price_sorts(page: Chrome, service: Service):
    search(page, "soup")
    one(page, "sort").find_element(By.CSS_SELECTOR, '[value="price_asc"]').click()
    expected = [hit["item_id"] for hit in service.search("soup", sort="price_asc", page_size=24)["hits"]]
    WebDriverWait(page, 10).until(lambda _: ids(page) == expected)


def test_similar_items_and_back(page: Chrome, service: Service):
    search(page, "frozen pizza")
    before = ids(page)
    one(page, "similar-button").click()
    WebDriverWait(page, 10).until(lambda _: "view=similar" in page.current_url and ids(page) != before)
    told = service.ask("GET", f"/v1/items/{before[0]}/similar?k=24").json
    assert ids(page) == [hit["item_id"] for hit in told["hits"]]
    page.back()
    WebDriverWait(page, 10).until(lambda _: ids(page) == before)


def test_for_you_differs_by_household_and_says_why(page: Chrome, service: Service):
    seen = []
    for shopper in SHOPPERS:
        page.get(f"{service.url}/?view=for-you&user={shopper}")
        told = service.ask("POST", "/v1/recommend", {"user_id": shopper, "k": 24}).json
        expected = [hit["item_id"] for hit in told["hits"]]
        WebDriverWait(page, 10).until(lambda _, expected=expected: ids(page) == expected)
        seen.append(tuple(expected))
    assert len(set(seen)) == len(SHOPPERS)
    options = [
        option.get_attribute("value") for option in one(page, "shopper-select").find_elements(By.TAG_NAME, "option")
    ]
    assert set(SHOPPERS) <= set(options)
    one(page, "explain-toggle").click()
    WebDriverWait(page, 10).until(lambda _: all_of(page, "reason"))


def test_who_was_picked_searches_too(page: Chrome, service: Service):
    page.get(f"{service.url}/?view=for-you")
    WebDriverWait(page, 10).until(lambda _: all_of(page, "shopper-select"))
    Select(one(page, "shopper-select")).select_by_value(SHOPPERS[0])
    WebDriverWait(page, 10).until(lambda _: f"user={SHOPPERS[0]}" in page.current_url)
    one(page, "search-input").send_keys("milk", Keys.ENTER)
    WebDriverWait(page, 10).until(lambda _: f"Results for “milk” for shopper {SHOPPERS[0]}" in page.page_source)
    told = service.ask("POST", "/v1/search", {"query": "milk", "user_id": SHOPPERS[0], "page_size": 24}).json
    assert ids(page) == [hit["item_id"] for hit in told["hits"]]
    assert f"user={SHOPPERS[0]}" in page.current_url


def test_everything_can_be_done_by_keyboard_alone(page: Chrome):
    page.execute_script("document.activeElement.blur()")  # the page begins in the box
    ActionChains(page).send_keys("/").perform()
    assert page.switch_to.active_element.get_attribute("data-testid") == "search-input"
    page.switch_to.active_element.send_keys("piz")
    WebDriverWait(page, 10).until(lambda _: all_of(page, "suggestion"))
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    chosen = page.find_element(By.CSS_SELECTOR, '[data-testid="suggestion"][aria-selected="true"]').text
    assert "piz" in chosen
    page.switch_to.active_element.send_keys(Keys.ENTER)
    WebDriverWait(page, 10).until(lambda _: "q=" in page.current_url)
    assert ids(page)
    reached = set()
    for _ in range(80):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focused = page.switch_to.active_element
        name = focused.get_attribute("data-testid") or ("value" if focused.get_attribute("data-value") else "")
        reached.add(name)
        if name == "value" and not all_of(page, "chip"):
            focused.send_keys(Keys.ENTER)
            WebDriverWait(page, 10).until(lambda _: all_of(page, "chip"))
            settled(page)
        if name == "similar-button":
            focused.send_keys(Keys.ENTER)
            break
    assert {"value", "sort", "similar-button"} <= reached
    WebDriverWait(page, 10).until(lambda _: "view=similar" in page.current_url)


def test_a_phone_shows_everything_in_its_width(page: Chrome, service: Service, tmp_path: Path):
    page.set_window_size(500, 800)  # Chromium's least; the device's width is set below
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for path in ("/?q=milk", "/?view=for-you&user=900", "/?q=zzzzqqq"):
            page.get(service.url + path)
            settled(page)
            width = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert width[0] <= width[1] == 360, path
        page.get(f"{service.url}/?q=milk")
        settled(page)
        one(page, "filters-toggle").click()
        value = one(page, "filter-brand").find_elements(By.CSS_SELECTOR, "[data-value]")[0]
        WebDriverWait(page, 10).until(lambda _: value.is_displayed())
        value.click()
        WebDriverWait(page, 10).until(lambda _: "brand=" in page.current_url)
        page.save_screenshot(str(tmp_path / "phone.png"))
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_found_is_said_with_a_way_out(page: Chrome):
    search(page, "milk")
    page.get(page.current_url.split("?")[0] + "?q=milk&brand=Nobody")
    assert one(page, "empty").is_displayed()
    one(page, "clear-filters").click()
    WebDriverWait(page, 10).until(lambda _: ids(page))


def test_an_error_is_told_and_can_be_tried_again(page: Chrome, service: Service):
    page.execute_cdp_cmd("Network.enable", {})
    page.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/v1/search"]})
    search(page, "soup")
    assert one(page, "error").is_displayed()
    page.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    one(page, "retry").click()
    WebDriverWait(page, 10).until(lambda _: ids(page))
    page.get_log("browser")  # the blocked request
