#!/usr/bin/env python3
"""Opens a report page in a headless Chromium, offline, at 1400 and at 390 px, light and dark.

    python3 dev/check/test_report.py log/compare/report.html [SCREENSHOT.png]
    python3 dev/check/test_report.py log/diverged/report.html --diverged
    python3 dev/check/test_report.py log/marked/report.html --markup

The page makes no error in the console, draws every curve, and is never wider than the screen; no
text is cut. Arms can be switched off, by mouse and by keyboard; a drag zooms, a double click ends
that; log scales, single seeds and smoothing change the curves; PNG, SVG and CSV are saved. A click
on the scale atlas opens a history.

--diverged: of runs that died, no error either, and the page says so. --markup: of a run whose first
operand has a name with <img in it. Needs the PyPI package playwright and a chromium of the system.
"""

import os
import shutil
import sys
import time

from playwright.sync_api import sync_playwright

VIEWS = [(scheme, width) for width in (1400, 390) for scheme in ("light", "dark")]
# Texts that are wider than their box, or end beyond the screen; SVG's texts beyond their picture.
CUT = """() => {
  const cut = [], wide = innerWidth + .5;
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (!box.width || e.closest('[hidden], canvas, select') || e.tagName === 'path') continue;
    const outside = box.right > wide || box.left < -.5;
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (e.closest('svg.chart')) {
      const chart = e.closest('svg.chart').getBoundingClientRect();
      if (e.tagName === 'text' && (box.left < chart.left - 1 || box.right > chart.right + 1 ||
          box.top < chart.top - 1 || box.bottom > chart.bottom + 1)) cut.push(e.textContent);
    } else if (outside || (own && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)) {
      cut.push(e.tagName + ' ' + e.textContent.slice(0, 40));
    }
  }
  return cut;
}"""
COLORS_OF_ATLAS = """() => {
  const c = document.getElementById('atlas'), seen = new Set();
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  for (let i = 0; i < d.length; i += 4) seen.add(d[i] + ',' + d[i + 1] + ',' + d[i + 2]);
  return seen.size;
}"""
failed = 0


def check(good, name, found=""):
    global failed
    failed += not good
    print(("ok   " if good else "FAIL ") + name, "" if good else found, flush=True)


def launch(playwright):
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def open_page(browser, scheme, width, **options):
    """A page, the list of its errors, and its context."""
    view = {"width": width, "height": 900}
    context = browser.new_context(color_scheme=scheme, viewport=view, **options)
    page, errors = context.new_page(), []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    return page, errors, context


def ticks(page, chart):
    return page.locator(f"#{chart} text").all_text_contents()


def curves(page, chart, kind="curve"):
    return page.locator(f"#{chart} path.{kind}").count()


def check_layout(page, name):
    wide = page.evaluate("document.documentElement.scrollWidth")
    check(wide <= page.viewport_size["width"], name + "nothing is wider than the screen", wide)
    cut = page.evaluate(CUT)
    check(not cut, name + "no text is cut", cut[:5])


def drag(page, chart, begin, end):
    """Drags over a chart between two shares of its width."""
    page.locator("#" + chart).scroll_into_view_if_needed()
    box = page.locator("#" + chart).bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + begin * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=4)
    page.mouse.up()


def check_switches(page, name, chart="loss"):
    """Arms are switched off and on in all charts, by mouse and by keyboard."""
    before, key = curves(page, chart), page.locator(f"#{chart}-legend button").first
    key.click()
    check(curves(page, chart) == before - 1, name + "a click switches an arm off")
    check(key.get_attribute("aria-pressed") == "false", name + "its button says so")
    check(curves(page, "norm") < page.locator("#norm-legend button").count(),
          name + "it is switched off in every chart")
    key.press("Enter")
    check(curves(page, chart) == before, name + "the Enter key switches it on")


def check_views(page, name, chart="loss"):
    """Zoom, log scales and smoothing change what is drawn, and end again."""
    before = ticks(page, chart)
    drag(page, chart, .4, .8)
    check(ticks(page, chart) != before, name + "a drag zooms", before)
    button = page.locator(f"#{chart}-whole")
    check(button.is_visible(), name + "a button ends the zoom")
    page.locator("#" + chart).dblclick()
    check(ticks(page, chart) == before and not button.is_visible(),
          name + "a double click shows the whole range", ticks(page, chart))
    for what in ("logx", "logy"):
        box = page.locator(f"#{chart}-tools [data-what={what}]")
        box.check()
        said = any("log scale" in text for text in ticks(page, chart))
        check(said and ticks(page, chart) != before, f"{name}{what} is drawn, and said")
        box.uncheck()
    page.locator(f"#{chart}-tools [data-what=smooth]").fill("0.8")
    check(any("weight 0.8" in text for text in ticks(page, chart)) and
          curves(page, chart, "raw") == curves(page, chart), name + "smoothing is drawn, and said")
    page.locator(f"#{chart}-tools [data-what=smooth]").fill("0")
    check(ticks(page, chart) == before, name + "everything is as before", ticks(page, chart))


def check_hover(page, name, chart="loss"):
    value = page.locator(f"#{chart}-legend b").first
    last, read = value.inner_text(), page.locator(f"#{chart}-read")
    step = read.inner_text()
    box = page.locator("#" + chart).bounding_box()
    page.locator("#" + chart).hover(position={"x": box["width"] * .3, "y": box["height"] / 2})
    check(value.inner_text() != last and read.inner_text() != step, name + "a hover reads out")
    page.locator("#" + chart).press("ArrowRight")
    check(read.inner_text().startswith("step "), name + "the arrow keys move it", read.inner_text())
    page.mouse.move(0, 0)


def check_saves(page, name, charts):
    """Every chart is saved in three forms."""
    begins = {"PNG": b"\x89PNG\r\n", "SVG": b"<svg xmlns", "CSV": b"series,step,value"}
    for chart in charts:
        for kind, begin in begins.items():
            with page.expect_download() as waiting:
                page.locator(f"#{chart}-tools [data-save={kind}]").click()
            with open(waiting.value.path(), "rb") as f:
                saved = f.read()
            whole = saved.startswith(begin) and len(saved) > {"PNG": 8000}.get(kind, 200)
            named = waiting.value.suggested_filename == f"{chart}.{kind.lower()}"
            check(whole and named, f"{name}{chart} is saved as {kind}", saved[:80])


def check_atlas(page, name, errors):
    colors = page.evaluate(COLORS_OF_ATLAS)
    check(colors > 5, name + "the atlas has cells of many values", colors)
    labels, steps = page.locator("#atlas-labels span"), page.locator("#atlas-steps span")
    check(labels.count() >= 1 and steps.count() >= 2, name + "its rows and steps are named")
    row, box = labels.last.bounding_box(), page.locator("#atlas").bounding_box()
    check(box["y"] < row["y"] + row["height"] / 2 < box["y"] + box["height"],
          name + "a label is beside its row", f"{row}, {box}")
    check(not page.locator("#history").is_visible(), name + "no history before a click")
    page.locator("#atlas").click(position={"x": 60, "y": 40})
    check(page.locator("#history").is_visible() and curves(page, "history") == 1,
          name + "a click opens the tensor's history")
    page.locator("#history").hover()
    if "--markup" in sys.argv:
        check("<" in page.locator("#history-read").inner_text(),
              name + "a name with markup is shown as it is")
    check(page.locator("img").count() == 0, name + "no markup of a log becomes part of the page")
    for what in ("sqnr", "kurtosis", "stale", "flushed"):
        page.select_option("#atlas-what", what)
    check(not errors, name + "other quantities make no error", errors)


def check_report(page, errors, name, path):
    begin = time.time()
    page.goto("file://" + path)
    if "--diverged" in sys.argv:
        page.wait_for_selector("#arms td")
        check(not errors, name + "no error in the console", errors)
        said = page.locator("#arms").inner_text()
        check("diverged" in said, name + "the table names what diverged", said)
        check_layout(page, name)
        return
    page.wait_for_selector("#loss path.curve")
    seconds = time.time() - begin
    check(not errors, name + "no error in the console", errors)
    check(seconds < 1.5, name + "drawn in less than 1.5 seconds", seconds)
    for chart in ("loss", "gap", "train", "norm"):
        drawn = page.locator(f"#{chart} path.curve")
        lengths = [len(drawn.nth(i).get_attribute("d")) for i in range(drawn.count())]
        keys = page.locator(f"#{chart}-legend button").count()
        check(len(lengths) == keys and all(n > 10 for n in lengths),
              f"{name}every curve of '{chart}' is there", lengths)
        check(any("nats a" in text or "norm" in text for text in ticks(page, chart)),
              f"{name}the axis of '{chart}' has a title and a unit")
    check_layout(page, name)
    check(page.locator("#atlas-section").is_visible(), name + "there is an atlas")
    check_atlas(page, name, errors)
    if "--markup" in sys.argv:
        return
    check_switches(page, name)
    check_views(page, name)
    check_hover(page, name)
    page.locator("#loss-tools [data-what=seeds]").check()
    check(curves(page, "loss", "seed") > curves(page, "loss"), name + "single seeds are drawn")
    page.locator("#loss-tools [data-what=seeds]").uncheck()
    if page.viewport_size["width"] > 1000:
        check_saves(page, name, ("loss", "gap", "train", "norm", "history"))
    check_layout(page, name + "at the end ")
    check(not errors, name + "no error until the end", errors)


def main():
    path = os.path.abspath(sys.argv[1])
    size = os.path.getsize(path)
    check(size < 3e6, "the page has less than 3 MB", size)
    picture = sys.argv[2] if len(sys.argv) > 2 and sys.argv[2].endswith(".png") else None
    with sync_playwright() as p:
        browser = launch(p)
        for scheme, width in VIEWS:
            page, errors, context = open_page(browser, scheme, width, offline=True)
            check_report(page, errors, f"{scheme}, {width} wide: ", path)
            if picture:
                page.mouse.move(0, 0)
                name = picture.replace(".png", f"-{scheme}-{width}.png")
                page.screenshot(path=name, full_page=True)
            context.close()
        browser.close()
    print("passed" if not failed else f"{failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
