"""A person searches by photo: from a file, by a paste and a drop, with words and without."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.support.ui import WebDriverWait

from rayrec.workspace import Workspace
from tests.browser.test_shop import all_of, count, ids, one, search, settled
from tests.photo_shop import photo_of
from tests.service import Service, running

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.browser]


@pytest.fixture(scope="module")
def service(photo_shop: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The page's service in this module: of a shop with pictures."""
    log = tmp_path_factory.mktemp("photos") / "serve.log"
    with running(
        photo_shop, log, {"page_name": "photo shop", "max_image_bytes": 400_000}, "--replicas", "1"
    ) as service:
        yield service


def choose(page: Chrome, file: Path) -> None:
    WebDriverWait(page, 10).until(lambda _: one(page, "photo-button").is_displayed())
    one(page, "photo-file").send_keys(str(file))
    WebDriverWait(page, 10).until(lambda _: all_of(page, "photo-chip") or all_of(page, "error"))
    settled(page)


def test_a_large_photo_finds_its_item_and_goes_again(page: Chrome, tmp_path: Path):
    everything = ids(page)
    photo = tmp_path / "phone.png"
    photo.write_bytes(photo_of("yellow chair", (4_000, 3_000), "PNG"))
    choose(page, photo)
    assert ids(page)[0] == "yellow-chair"
    assert page.find_element("id", "heading").text == "Items like your photo"
    chip = one(page, "photo-chip")
    assert chip.accessible_name == "Remove your photo"
    assert chip.find_element("tag name", "img").get_property("naturalWidth") == 1024
    assert one(page, "photo-button").accessible_name == "Search by photo"
    one(page, "explain-toggle").click()
    WebDriverWait(page, 10).until(lambda _: all_of(page, "reason"))
    assert "looks like your photo" in one(page, "reason").text
    page.save_screenshot(str(tmp_path / "photo.png"))
    one(page, "explain-toggle").click()
    settled(page)
    one(page, "photo-chip").click()
    WebDriverWait(page, 10).until(lambda _: not all_of(page, "photo-chip"))
    assert ids(page) == everything


def test_a_photo_goes_with_words_filters_pages_and_the_way_back(page: Chrome, service: Service, tmp_path: Path):
    photo = tmp_path / "mug.jpg"
    photo.write_bytes(photo_of("green mug", (300, 280)))
    search(page, "lamp")
    choose(page, photo)
    assert page.find_element("id", "heading").text == "Results for “lamp” and your photo"
    both = ids(page)
    assert "green-mug" in both
    value = one(page, "filter-brand").find_elements("css selector", "[data-value]")[0]
    told = int(value.find_element("class name", "count").text)
    value.click()
    WebDriverWait(page, 10).until(lambda _: all_of(page, "chip"))
    assert count(page) == told
    assert one(page, "photo-chip").is_displayed()
    page.back()
    WebDriverWait(page, 10).until(lambda _: ids(page) == both)
    page.refresh()
    assert ids(page) == both
    one(page, "search-input").clear()
    one(page, "search-input").send_keys(Keys.ENTER)
    WebDriverWait(page, 10).until(lambda _: "q=" not in page.current_url)
    assert ids(page)[0] == "green-mug"
    while all_of(page, "load-more"):
        before = len(ids(page))
        one(page, "load-more").click()
        WebDriverWait(page, 10).until(lambda _, before=before: len(ids(page)) > before)
    whole = service.ask("POST", "/v1/search", {"image": base64.b64encode(photo.read_bytes()).decode()}).json["total"]
    assert len(set(ids(page))) == count(page) == pytest.approx(whole, abs=3)  # the page's JPEG is another file


HAND_OVER = """
    const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "photo.png", { type: "image/png" }));
    const event = arguments[1] === "paste"
      ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
      : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
"""


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_photo_can_be_pasted_and_dropped(page: Chrome, way: str):
    ids(page)
    page.execute_script(HAND_OVER, base64.b64encode(photo_of("black scarf", form="PNG")).decode(), way)
    WebDriverWait(page, 10).until(lambda _: all_of(page, "photo-chip"))
    assert ids(page)[0] == "black-scarf"


def test_a_phone_shows_button_and_photo_in_its_width(page: Chrome, service: Service, tmp_path: Path):
    photo = tmp_path / "lamp.jpg"
    photo.write_bytes(photo_of("red lamp"))
    page.set_window_size(500, 800)  # Chromium's least; the device's width is set below
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.get(f"{service.url}/?q=lamp")
        choose(page, photo)
        width = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1] == 360
        assert one(page, "photo-chip").is_displayed()
        page.save_screenshot(str(tmp_path / "phone.png"))
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_file_that_is_no_picture_is_told_and_changes_nothing(page: Chrome, tmp_path: Path):
    before = ids(page)
    file = tmp_path / "photo.png"
    file.write_bytes(b"no picture")
    choose(page, file)
    assert "cannot read" in one(page, "error").text
    assert ids(page) == before


def test_a_link_from_elsewhere_goes_on_without_its_photo(page: Chrome, service: Service):
    page.get(f"{service.url}/?q=lamp&photo=elsewhere")
    assert ids(page)
    assert not all_of(page, "photo-chip")
    assert page.current_url == f"{service.url}/?q=lamp"
