"""Take pictures of the page: `python scripts/take_screenshots.py [folder]`.

The service runs on its demo backend, in a folder of its own, and Chromium looks at it: narrow and
wide, light and dark, in both languages. `page.png`, what is seen without
scrolling, is the README's.
"""

import shutil
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from servers import Gateway, wait_until  # noqa: E402 - found by the line above

WIDTHS: Final = (360, 1280, 1920)
THEMES: Final = ("light", "dark")
LOCALES: Final = ("en-US", "zh-CN")
#: Who is on the cards, and whose recording lends the voice.
VOICES: Final = {
    "default": "default",
    "chixiaotu6": "chixiaotu6",
    "alice": "chixiaotu6",
    "narrator": "default",
    "云溪": "chixiaotu6",
}
FLAGS: Final = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--mute-audio",
]
HEARD_TO: Final = 0.35  # the part of the answer that has been heard in a picture


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        service = serve(Path(temporary))
        try:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=FLAGS
            )
            for locale, theme, width in product(LOCALES, THEMES, WIDTHS):
                shoot(browser, service, folder, width=width, theme=theme, locale=locale)
            browser.close()
        finally:
            service.stop()


def serve(folder: Path) -> Gateway:
    """The service, once its demo backend speaks."""
    prompts = folder / "prompts"
    prompts.mkdir()
    for name, lender in VOICES.items():
        shutil.copy(ROOT / "prompts" / f"{lender}.wav", prompts / f"{name}.wav")
    service = Gateway.start(folder, SELF_TEST=1)
    wait_until(lambda: service.health()["self_test"]["state"] == "passed", 120)
    return service


def shoot(
    browser: Browser, service: Gateway, folder: Path, *, width: int, theme: Any, locale: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, locale=locale
    )
    page = context.new_page()
    page.goto(service.url)
    speak_to_the_middle(page)
    name = f"page-{locale[:2]}-{theme}-{width}"
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    if name == "page-en-light-1280":
        page.screenshot(path=folder / "page.png")
    page.locator("#add-voice").click()
    page.screenshot(path=folder / f"{name}-add.png")
    context.close()


def speak_to_the_middle(page: Page) -> None:
    """The example spoken by three voices, and the last one stopped on its way."""
    for voice in ("narrator", "云溪", "alice"):
        page.locator(f"[name=voice][value={voice}]").check()
        if page.locator("#example").is_visible():
            page.locator("#example").click()
        page.locator("#speak").click()
        expect(page.locator("#shelf li").first).to_contain_text(voice)
    sound = page.locator("#sound")
    sound.evaluate("(sound) => sound.pause()")
    sound.evaluate(f"(sound) => {{ sound.currentTime = sound.duration * {HEARD_TO}; }}")
    page.locator("#text").blur()
    page.wait_for_timeout(500)  # for the transitions


if __name__ == "__main__":
    main()
