#!/usr/bin/env python3
"""Opens a report page in a headless Chromium: no error in its console, curves, an atlas, and a click that opens a history.

    python3 dev/check/test_report.py log/compare/report.html [SCREENSHOT.png]
    python3 dev/check/test_report.py log/diverged/report.html --diverged     # a page of runs that died: no error either, and it says so
    python3 dev/check/test_report.py log/marked/report.html --markup         # of a run whose first operand has a name with <img in it

Needs the PyPI package playwright and a chromium of the system. The page is opened offline, light and dark, wide and narrow.
"""

import os
import shutil
import sys
import time

from playwright.sync_api import sync_playwright

failed = 0


def check(good, name, found=""):
    global failed
    failed += not good
    print(("ok   " if good else "FAIL ") + name, "" if good else found)


def main():
    page_path = os.path.abspath(sys.argv[1])
    size = os.path.getsize(page_path)
    check(size < 3e6, "the page has less than 3 MB", size)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("chromium-browser"), args=["--no-sandbox"])
        for scheme, width in (("light", 1200), ("dark", 1200), ("light", 390)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
            page, errors = context.new_page(), []
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda e: errors.append(str(e)))
            begin = time.time()
            page.goto("file://" + page_path)
            if "--diverged" in sys.argv:
                page.wait_for_selector("#arms td")
                check(not errors, f"{scheme}, {width} wide: no error in the console", errors)
                check("diverged" in page.locator("#arms").inner_text(), f"{scheme}, {width} wide: the table names what diverged")
                context.close()
                continue
            page.wait_for_selector("#loss path.curve")
            seconds, name = time.time() - begin, f"{scheme}, {width} wide: "
            check(not errors, name + "no error in the console", errors)
            check(seconds < 1, name + "drawn in less than a second", seconds)
            for chart in ("loss", "gap", "norm"):
                curves = page.locator(f"#{chart} path.curve")
                drawn = sum(len(curves.nth(i).get_attribute("d")) > 10 for i in range(curves.count()))
                check(drawn >= 1 and drawn == curves.count(), name + f"every curve of '{chart}' is there", f"{drawn} of {curves.count()}")
            check(page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name + "nothing is wider than the screen")
            if page.locator("#atlas-section").is_visible():
                colours = page.evaluate("""() => { const c = document.getElementById('atlas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, s = new Set();
                    for (let i = 0; i < d.length; i += 4) s.add(d[i] + ',' + d[i + 1] + ',' + d[i + 2]); return s.size; }""")
                check(colours > 5, name + "the atlas has cells of many values", colours)
                labels, ticks = page.locator("#atlas-labels span"), page.locator("#atlas-steps span")
                check(labels.count() >= 1 and ticks.count() >= 2, name + "rows and steps of the atlas are named", f"{labels.count()}, {ticks.count()}")
                row, map_ = labels.last.bounding_box(), page.locator("#atlas").bounding_box()
                check(map_["y"] < row["y"] + row["height"] / 2 < map_["y"] + map_["height"], name + "a label is beside its row", f"{row}, {map_}")
                check(not page.locator("#history").is_visible(), name + "no history before a click")
                page.locator("#atlas").click(position={"x": 60, "y": 40})
                curve = page.locator("#history path.curve")
                check(page.locator("#history").is_visible() and curve.count() == 1, name + "a click opens the tensor's history")
                page.locator("#history").hover()
                if "--markup" in sys.argv:
                    check("<" in page.locator("#history-read").inner_text(), name + "a name with markup is shown as it is")
                check(page.locator("img").count() == 0, name + "no markup of a log becomes part of the page")
                for what in ("sqnr", "stale", "flushed"):
                    page.select_option("#atlas-what", what)
                check(not errors, name + "other quantities make no error", errors)
            else:
                check(False, name + "there is an atlas")
            if len(sys.argv) > 2 and sys.argv[2].endswith(".png"):
                page.screenshot(path=sys.argv[2].replace(".png", f"-{scheme}-{width}.png"), full_page=True)
            context.close()
        browser.close()
    print("passed" if not failed else f"{failed} failed")
    return failed != 0


sys.exit(main())
