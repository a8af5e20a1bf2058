#!/usr/bin/env python3
"""Watches a run under way through build/watch, in a headless Chromium and by plain sockets.

    python3 dev/check/test_watch.py [SCREENSHOT.png]

New rows appear, zoom and switches stay, at 1400 and at 390 px, light and dark. Other methods, paths
and hosts are refused, bad input ends with one line, a log of 100,000 rows is quick, a torn line and
a link are not shown. Needs build/watch, train_gpt_fp8, playwright and a chromium of the system.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

import test_report
from test_report import check

ROOM = "build/watch-test"
OTHER = "build/watch-other"

def start(directory, port="0"):
    """A watcher and its port."""
    watcher = subprocess.Popen(["build/watch", directory, "--port", port],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = watcher.stdout.readline()
    return watcher, int(line.split("127.0.0.1:")[1].split()[0])


def end(watcher, name):
    watcher.send_signal(signal.SIGINT)
    check(watcher.wait(5) == 0, name + "Ctrl-C ends it with status 0", watcher.returncode)


def ask(port, request):
    """The answer to a request as it stands."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(request.replace("\n", "\r\n").encode())
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
    return answer.decode(errors="replace")


def get(port, path, host=None):
    return ask(port, f"GET {path} HTTP/1.1\nHost: {host or f'127.0.0.1:{port}'}\n\n")


def check_refusals(port):
    """Only GET of / and /data, and only for this host."""
    host = f"Host: 127.0.0.1:{port}\n"
    cases = {
        "POST": (f"POST / HTTP/1.1\n{host}Content-Length: 3\n\na=b", "405"),
        "HEAD": (f"HEAD / HTTP/1.1\n{host}\n", "405"),
        "no host": ("GET / HTTP/1.1\n\n", "403"),
        "two hosts": (f"GET / HTTP/1.1\n{host}{host}\n", "403"),
        "no request": ("hello\n\n", "405"),
        "a long request": (f"GET / HTTP/1.1\n{host}X: {'x' * 9000}\n\n", "431"),
    }
    for name, (request, status) in cases.items():
        said = ask(port, request).split("\r\n")[0]
        check(f" {status} " in said, f"{name} is refused with {status}", said)
    for path in ("/x", "/../Makefile", "/data/../../Makefile", "//etc/passwd", "/%2e%2e/Makefile",
                 "/data?atlas=x", "/data?atlas=1/..", "/data?", "http://127.0.0.1/", "/log.tsv"):
        said = get(port, path).split("\r\n")[0]
        check(" 404 " in said, f"GET {path} is refused with 404", said)
    for other in ("example.org", f"example.org:{port}", "127.0.0.1:1", f"127.0.0.1:{port}.x",
                  f"localhost.example.org:{port}", ""):
        said = get(port, "/data", other or " ").split("\r\n")[0]
        check(" 403 " in said, f"host '{other}' is refused with 403", said)
    said = get(port, "/data", f"localhost:{port}").split("\r\n")[0]
    check(" 200 " in said, "host localhost is answered", said)
    said = get(port, "/data?atlas=999")
    check(" 200 " in said and said.endswith("\r\n\r\n"), "the atlas of no run is empty", said[-99:])
    with socket.create_connection(("127.0.0.1", port)) as idle:
        begin = time.time()
        check(" 200 " in get(port, "/data"), "a connection without a request hinders nobody")
        check(time.time() - begin < 1, "and takes no time", time.time() - begin)
        idle.close()
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        begin = time.time()
        check(" 200 " in get(port, "/data"), "a slow request ends")
        check(time.time() - begin < 6, "in a few seconds", time.time() - begin)
    with socket.socket() as other:
        address = socket.gethostbyname(socket.gethostname())
        if not address.startswith("127."):
            check(other.connect_ex((address, port)) != 0, "it listens on the loopback alone")


def check_input():
    """Bad input: one line, status 2."""
    os.makedirs("build/watch-empty", exist_ok=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words in ([], ["build/no-such"], ["build/watch-empty"], ["Makefile"], [ROOM, "--prot"],
                      [ROOM, "--port"], [ROOM, "--port", "x"], [ROOM, "--port", "65536"],
                      [ROOM, "--port", "-1"], [ROOM, ROOM], [ROOM, "--port", port]):
            said = subprocess.run(["build/watch", *words], capture_output=True, text=True,
                                  timeout=9, check=False)
            good = said.returncode == 2 and said.stderr.count("\n") == 1 and not said.stdout
            check(good, f"build/watch {' '.join(words)}: one line, status 2", said)
    said = subprocess.run(["build/watch", "--help"], capture_output=True, text=True, check=False)
    check(said.returncode == 0 and "--port" in said.stdout, "--help says what there is")


def header():
    with open(f"{ROOM}/live/log.tsv", encoding="utf-8") as f:
        return "".join(line for line in f if line[0] in "#s")


def rows(count):
    row = "{}\t{}\t{:.5f}\t{}\t0.001\t1.5\t1\t4.0\t60000\t0.02\n"
    return "".join(row.format(i, 256 * i, 1 + 4 / i, 1.5 if i % 500 == 0 else "nan")
                   for i in range(1, count + 1))


def make_runs():
    """Beside the run under way: a long log, one with a torn line and old, and a link."""
    for name, text in (("long", rows(100_000)), ("torn", rows(20) + "21\t5376\t0.0"),
                       ("marked", rows(3))):
        os.makedirs(f"{ROOM}/{name}", exist_ok=True)
        with open(f"{ROOM}/{name}/log.tsv", "w", encoding="utf-8") as f:
            f.write(header().replace("# recipe\t", "# recipe\t<img src=x>")
                    if name == "marked" else header())
            f.write(text)
    hour_ago = time.time() - 3600
    os.utime(f"{ROOM}/torn/log.tsv", (hour_ago, hour_ago))
    with open(f"{ROOM}/marked/scales.tsv", "w", encoding="utf-8") as f:
        f.write("step\tlayer\toperand\n")
    os.symlink(os.path.abspath(OTHER), f"{ROOM}/link")
    shutil.copytree(f"{ROOM}/torn", OTHER, dirs_exist_ok=True)
    os.makedirs(f"{ROOM}/linked", exist_ok=True)
    os.symlink(os.path.abspath(f"{ROOM}/torn/log.tsv"), f"{ROOM}/linked/log.tsv")


def arms_of(text):
    """The rows of each run, by name."""
    arms = {}
    for line in text.split("\r\n\r\n", 1)[1].splitlines():
        name, *cells = line.split("\t")
        if name == "label":
            arms[cells[0]] = arm = {}
        elif arms and name != "arm":
            arm[name] = cells
    return arms


def check_data(port):
    begin = time.time()
    arms = arms_of(get(port, "/data"))
    seconds = time.time() - begin
    check(sorted(arms) == ["live", "long", "marked", "torn"], "links are no runs", sorted(arms))
    check(seconds < 1, "a log of 100,000 rows takes less than a second", seconds)
    print(f"     {seconds:.2f} s")
    steps = [int(step) for step in arms["long"]["train_step"]]
    gaps = {b - a for a, b in zip(steps[:-2], steps[1:-1])}
    check(250 <= len(steps) <= 601 and steps[-1] == 100_000 and len(gaps) == 1,
          "its rows are thinned evenly, and the newest is there", f"{len(steps)}, {gaps}")
    check(arms["torn"]["at"][0] == "20" and len(arms["torn"]["train"]) == 20,
          "a torn last line is ignored", arms["torn"]["at"])
    check(arms["torn"]["run_state"] == ["no row for 1h00m"], "an old row's age is said",
          arms["torn"]["run_state"])
    check(arms["live"]["run_state"] == ["running"], "a run under way runs",
          arms["live"]["run_state"])


def wait(condition, seconds=20):
    """Whether a condition comes true in time. (The page's policy forbids playwright's own way.)"""
    until = time.time() + seconds
    while not condition() and time.time() < until:
        time.sleep(.2)
    return condition()


def step_of(page):
    row = page.locator("#arms tr", has_text="live").first.inner_text()
    return int(row.split(" of ")[0].split()[-1])


def check_page(page, errors, name, port):
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#loss path.curve")
    wait(lambda: page.locator("#atlas-labels span").count() > 6)
    first = step_of(page)
    test_report.check_layout(page, name)
    test_report.drag(page, "train", .5, .9)
    zoomed = test_report.ticks(page, "train")
    page.locator("#train-legend button", has_text="long").click()
    shown = test_report.curves(page, "train")
    check(wait(lambda: step_of(page) > first), name + "new rows appear")
    check(test_report.curves(page, "train") == shown, name + "what is switched off stays off")
    check(page.locator("#train-whole").is_visible(), name + "the zoom stays", zoomed)
    page.locator("#train").dblclick()
    page.locator("#train-legend button", has_text="long").click()
    test_report.check_views(page, name)
    colors = page.evaluate(test_report.COLORS_OF_ATLAS)
    check(colors > 5, name + "the scale atlas of a run is there", colors)
    page.locator("#atlas").click(position={"x": 60, "y": 40})
    check(test_report.curves(page, "history") == 1, name + "a click opens a tensor's history")
    said = page.locator("#arms").inner_text()
    check("<img" in said and page.locator("img").count() == 0, name + "markup is shown as it is")
    test_report.check_layout(page, name + "at the end ")
    if page.viewport_size["width"] > 1000:
        test_report.check_saves(page, name, ("loss", "train", "norm"))
    check(not errors, name + "no error in the console", errors)
    page.select_option("#atlas-arm", "marked")
    check(wait(lambda: "terminal" in page.locator("#atlas-read").inner_text()),
          name + "a log that cannot be understood is said")
    first = step_of(page)
    check(wait(lambda: step_of(page) > first), name + "it stops nothing else")


def main():
    for room in (ROOM, OTHER):
        shutil.rmtree(room, ignore_errors=True)
        os.makedirs(room)
    trainer = subprocess.Popen(
        ["./train_gpt_fp8", "-e", "d1", "-t", "64", "-x", "100000", "-v", "20", "-s", "0", "-o",
         f"{ROOM}/live"], stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while not os.path.exists(f"{ROOM}/live/log.tsv") or not rows_of_live():
            time.sleep(.1)
        make_runs()
        check_input()
        watcher, port = start(ROOM)
        try:
            check_data(port)
            check_refusals(port)
            pages(port)
        finally:
            end(watcher, "")
    finally:
        trainer.terminate()
        trainer.wait()
    print("passed" if not test_report.failed else f"{test_report.failed} failed")
    return test_report.failed != 0


def rows_of_live():
    with open(f"{ROOM}/live/log.tsv", encoding="utf-8") as f:
        return sum(line[0].isdigit() for line in f) > 40


def pages(port):
    with sync_playwright() as p:
        browser = test_report.launch(p)
        for scheme, width in test_report.VIEWS:
            page, errors, context = test_report.open_page(browser, scheme, width)
            check_page(page, errors, f"{scheme}, {width} wide: ", port)
            if len(sys.argv) > 1:
                name = sys.argv[1].replace(".png", f"-{scheme}-{width}.png")
                page.screenshot(path=name, full_page=True)
            context.close()
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
