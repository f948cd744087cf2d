"""The picture of docs/live.md, of the page in Chromium with a clip for a camera: ``make live-picture``."""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def photograph(clip: Path, chromium: str, seconds: float) -> bytes:
    """PNG of the page, so many seconds after it shows faces."""
    command = [sys.executable, "-m", "img2pose_edge", "live", "--source", str(clip), "--smooth", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout
        address = server.stdout.readline().split()[-1]
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 706})
        page.goto(address)
        page.wait_for_selector("#faces tr")
        page.wait_for_timeout(1000 * seconds)
        shot = page.screenshot()
        browser.close()
        server.terminate()
    return shot


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "google-chrome")
    parser.add_argument("--seconds", type=float, default=2.5)
    options = parser.parse_args()
    shot = photograph(options.clip, options.chromium, options.seconds)
    Image.open(io.BytesIO(shot)).convert("RGB").save(options.out, quality=80, method=6)
