"""The reports in a real browser: nothing is wrong on the console, every picture is decoded, and a click sorts the table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

import commands

pytestmark = pytest.mark.process
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SMALL = ("trainer.max_epochs=1", "network.encoder.sizes=[16]", "latent_dim=2")
PARTS = "return [...document.images].map(i => [i.complete, i.naturalWidth])"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with its driver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        # The network is cut off: a page that needs it shows.
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
        yield driver


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of beta with two seeds, of which one configuration fails."""
    place = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="1"):
        commands.train(place, patch, "--multirun", "sweep=beta", "objective.beta=1,40,-1", "seed=0,1", *SMALL)
    return place / "outputs" / "beta"


def opened(browser: webdriver.Chrome, page: Path, width: int = 1280) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("inside", [".", "a run"])
def test_a_page_is_whole_and_no_wider_than_the_window(browser: webdriver.Chrome, sweep: Path, inside: str, width: int) -> None:
    page = sweep / "report.html" if inside == "." else next(sweep.glob("*/report.html"))
    opened(browser, page, width)
    assert not browser.get_log("browser")
    pictures = browser.execute_script(PARTS)
    assert pictures
    assert all(complete and natural > 0 for complete, natural in pictures)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def column(browser: webdriver.Chrome, number: int) -> list[str]:
    return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, f".sortable tbody td:nth-child({number})")]


def test_a_click_on_a_heading_sorts_and_another_turns_it(browser: webdriver.Chrome, sweep: Path) -> None:
    opened(browser, sweep / "report.html")
    headings = browser.find_elements(By.CSS_SELECTOR, ".sortable th button")
    number = next(i for i, heading in enumerate(headings, 1) if heading.text == "ELBO, nats")
    before = column(browser, number)
    orders = []
    for _ in range(2):
        headings[number - 1].click()
        browser.execute_async_script("setTimeout(arguments[0], 200)")  # the script sorts a moment after the click
        orders.append([float(text.split()[0]) for text in column(browser, number) if text])
        assert column(browser, number)[-1] == "", "what has no number comes last"
    assert sorted(before) == sorted(column(browser, number))
    assert orders[0] == sorted(orders[0], reverse=True)
    assert orders[1] == sorted(orders[1])
    assert orders[0] != orders[1]


def test_a_link_leads_to_the_report_of_a_run(browser: webdriver.Chrome, sweep: Path) -> None:
    opened(browser, sweep / "report.html")
    browser.find_element(By.LINK_TEXT, "open").click()
    assert "Load it" in browser.page_source
    assert "objective.beta" in browser.current_url
