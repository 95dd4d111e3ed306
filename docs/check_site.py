"""Look at the built pages: ``python docs/check_site.py docs/_build/html``.

Links within the site have to lead somewhere, pictures need alternative text, and no page may need
a network. Where Chromium is installed, pages are opened at the widths of a desktop and of a phone:
none may log an error or be wider than the window.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

WIDTHS = {"desktop": 1280, "phone": 390}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1400,1000",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
    "--dump-dom",
]
# the page tells its width in the log, which can be read without driving the browser
MEASURE = """<script>addEventListener("load", () => console.log(
"width", document.documentElement.scrollWidth, innerWidth))</script>"""
# no window is as narrow as a phone, but a frame is
FRAME = '<iframe src="{}" style="width: {}px; height: 900px; border: 0"></iframe>'


def parse(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def problems_of(page, site, anchors):
    """What is wrong with one page, without a browser."""
    soup = anchors[page]
    for picture in soup.find_all("img"):
        if not picture.get("alt", "").strip():
            yield f"no alternative text: {picture.get('src')}"
    for tag, attribute in (("script", "src"), ("link", "href"), ("img", "src")):
        for found in soup.find_all(tag):
            rel = found.get("rel") or []
            if urlsplit(found.get(attribute, "")).scheme in ("http", "https") and rel != [
                "canonical"
            ]:
                yield f"needs a network: {found[attribute]}"
    for link in soup.find_all("a", href=True):
        parts = urlsplit(link["href"])
        if parts.scheme or parts.netloc:
            continue
        target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
        if not target.exists() or site not in target.parents:
            yield f"leads nowhere: {link['href']}"
        elif parts.fragment and target in anchors:
            name = unquote(parts.fragment)
            if not (anchors[target].find(id=name) or anchors[target].find(attrs={"name": name})):
                yield f"no such place: {link['href']}"


def opened(page, browser, width):
    """What is wrong with one page in a browser of this width."""
    text = page.read_text(encoding="utf-8")
    copy, frame = page.with_name(f"_copy_{page.name}"), page.with_name(f"_frame_{page.name}")
    copy.write_text(text.replace("<head>", f"<head>{MEASURE}", 1), encoding="utf-8")
    frame.write_text(FRAME.format(copy.name, width), encoding="utf-8")
    try:
        with tempfile.TemporaryDirectory() as profile:
            done = subprocess.run(
                [browser, *FLAGS, f"--user-data-dir={profile}", frame.as_uri()],
                capture_output=True,
                text=True,
                timeout=120,
            )
    finally:
        copy.unlink()
        frame.unlink()
    for message in re.findall(r':CONSOLE\S* "(.*)", source: ', done.stderr):
        if re.search(r"error|refused|failed", message, flags=re.I):
            yield message
    found = re.search(r'"width (\d+) (\d+)"', done.stderr)
    if found is None or int(found[2]) != width:
        yield "did not load"
    elif int(found[1]) > int(found[2]):
        yield f"{found[1]} pixels wide in a window of {found[2]}"


def main(folder):
    site = Path(folder).resolve()
    pages = sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)
    anchors = {page: parse(page) for page in pages}
    found = [(page, p) for page in pages for p in problems_of(page, site, anchors)]
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("no Chromium here: pages were not opened")
    else:
        for page in pages:
            for kind, width in WIDTHS.items():
                found += [(page, f"{kind}: {p}") for p in opened(page, browser, width)]
    for page, problem in found:
        print(f"{page.relative_to(site)}: {problem}")
    print(f"{len(pages)} pages, {len(found)} problems")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
