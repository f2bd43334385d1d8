"""A real browser, one for all tests of pages."""

import os

import pytest
from browser import Browser, find_chromium


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Where CI says that a browser can be had, to have none is a failure."""
    if find_chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium, which CI installs (.ci/run)")
        pytest.skip("no Chromium to open the page with")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    """Without what an earlier page said."""
    chromium.events.clear()
    return chromium
