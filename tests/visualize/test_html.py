"""The page: self-contained, inert whatever the tokens say, written whole or not at all, alive in a real browser."""

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil
import subprocess

import pytest

from hf_rm.visualize import Replay, render_html, write_html

EVIL = "</script><img src=x onerror=\"document.title='owned'\">"
MASK = 0


def sudoku():
    start = [1 + (3 * (i // 9) + i // 27 + i % 9) % 9 for i in range(81)]
    wrong = start[:]
    wrong[10] = wrong[10] % 9 + 1
    masked = wrong[:]
    masked[10] = MASK
    actions = [[0] * 81, [0] * 81]
    actions[0][10], actions[1][10] = 2, 1
    return Replay.from_trajectory(
        [wrong, masked, start], actions, mask_token_id=MASK, decode=str, target=start, layout="grid", title="Board"
    )


def hostile():
    tokens = [EVIL, "<!--<script>", "&lt;", "\u2028", "@@DATA@@", "\x1b", "\ud800"]
    n = len(tokens)
    return Replay(
        [["x"] * n, tokens], [[1] * n], [[True] * n, [False] * n], title=EVIL, metadata={EVIL: EVIL}, target=[EVIL] * n
    )


class Reader(html.parser.HTMLParser):
    """What an HTML parser sees: elements with attributes, and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += text


def payload(page):
    return json.loads(Reader(page).scripts[0])


def test_the_page_refers_to_nothing_outside():
    page = render_html([sudoku(), hostile()])
    template = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(
        r"https?:|//[a-z]|\burl\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(", template
    )
    for tag, attributes in Reader(page).elements:
        assert not {"src", "href", "srcset", "action", "data", "style"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")


def test_the_policy_admits_only_the_pages_own_style_and_script():
    page = render_html(sudoku())
    policy = next(a["content"] for tag, a in Reader(page).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_tokens_travel_as_data():
    page = render_html(hostile(), title=EVIL)
    reader = Reader(page)
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert "<img" not in page
    replay = payload(page)["replays"][0]
    assert replay["vocabulary"][replay["steps"][0][1]] == EVIL
    assert "@@DATA@@" in replay["vocabulary"]
    raw = reader.scripts[0]
    assert raw.isascii() and not set("<>&") & set(raw)


def test_the_data_holds_the_whole_trajectory():
    """Unrolling the changes as the page does gives every state back."""
    replay = sudoku()
    packed = payload(render_html(replay))["replays"][0]
    state = list(packed["first"])
    states = [state[:]]
    for changes in packed["steps"]:
        for position, token, _ in zip(*[iter(changes)] * 3, strict=True):
            state[position] = token
        states.append(state[:])
    for step, ids in enumerate(states):
        tokens = ["[MASK]" if i == -1 else packed["vocabulary"][i] for i in ids]
        assert tokens == replay.frames[step]
    assert packed["steps"][0] == [10, -1, 2]
    assert [packed["vocabulary"][i] for i in packed["target"]] == replay.target


def test_titles():
    assert "<title>Board</title>" in render_html(sudoku())
    assert "<title>a &lt;b&gt; &amp; c</title>" in render_html(sudoku(), title="a <b> & c")
    assert "<title>Reflective Masking replay</title>" in render_html([sudoku(), sudoku()])


def test_buttons_are_labelled_and_the_counter_is_announced():
    elements = Reader(render_html(sudoku())).elements
    counter = next(a for _, a in elements if a.get("id") == "counter")
    assert counter["aria-live"] == "polite"
    for name in ("back", "forward", "speed", "scrub"):
        assert next(a for _, a in elements if a.get("id") == name)["aria-label"]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="replays is empty"):
        render_html([])
    with pytest.raises(TypeError, match=r"replays\[1\] is a str"):
        render_html([sudoku(), "x"])


def test_write_makes_the_folder_and_returns_the_path(tmp_path):
    path = tmp_path / "new" / "page.html"
    assert write_html(sudoku(), path) == path
    assert path.read_text(encoding="utf-8") == render_html(sudoku())
    assert os.listdir(path.parent) == ["page.html"]


def test_a_failed_rendering_leaves_the_old_page(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    broken = sudoku()
    broken.masked[2] = broken.masked[2][:5]  # after the check that a new Replay makes
    with pytest.raises(IndexError):
        write_html(broken, path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["page.html"]


def test_a_failed_replacement_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_html(sudoku(), path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["page.html"]


# ---- in a real browser
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --virtual-time-budget=3000 --dump-dom"
).split()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
def test_in_a_browser(tmp_path):
    path = write_html([sudoku(), hostile()], tmp_path / "page.html", title="Two")

    def dump(address, profile):
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / profile}", path.as_uri() + address]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    dom = dump("#step=1&replay=0", "a")
    assert "Step 1<span> of 2</span>" in re.sub(r' class=""', "", dom)
    cells = re.findall(r'<div role="cell" class="([^"]*)" aria-label="([^"]*)"', dom)
    assert len(cells) == 81
    assert "remask" in cells[10][0].split() and cells[10][1] == "mask, re-masked"
    counts = dict(re.findall(r'id="count-(\w+)">(\d+)<', dom))
    assert counts == {"reveal": "0", "remask": "1", "replace": "0", "kept": "80", "masks": "1", "wrong": "0"}

    dom = dump("#step=1&replay=1", "b")
    assert "<title>Two</title>" in dom
    visible = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert "&lt;/script&gt;&lt;img src=x" in visible
    assert "<img" not in visible
    assert len(re.findall(r'<span[^>]*class="token', dom)) == 7


DRIVER = """<!doctype html><iframe id="f" src="page.html"></iframe><pre id="log"></pre><script>
const frame = document.getElementById("f"), said = [];
frame.onload = async () => {
  const page = frame.contentDocument, at = (id) => page.getElementById(id);
  const note = (what) => said.push(what + ": " + at("counter").textContent + " " + frame.contentWindow.location.hash);
  const Press = frame.contentWindow.KeyboardEvent;
  const key = (name) => page.body.dispatchEvent(new Press("keydown", {key: name, bubbles: true}));
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  note("start");
  at("forward").click(); note("forward");
  key("ArrowLeft"); note("left");
  key("End"); note("end");
  at("play").click(); said.push("live " + at("counter").getAttribute("aria-live"));
  await wait(4000); note("played"); said.push("live " + at("counter").getAttribute("aria-live"));
  key("Home"); key(" "); key(" "); note("paused");
  at("scrub").value = 1; at("scrub").dispatchEvent(new Event("input")); note("scrubbed");
  at("replay").value = 1; at("replay").dispatchEvent(new Event("change")); note("picked");
  document.getElementById("log").textContent = said.join("\\n");
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
def test_the_controls_in_a_browser(tmp_path):
    write_html([sudoku(), hostile()], tmp_path / "page.html")
    (tmp_path / "driver.html").write_text(DRIVER)
    flags = [flag.replace("3000", "9000") for flag in FLAGS] + ["--allow-file-access-from-files"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "driver.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    said = re.search(r'<pre id="log">(.*?)</pre>', dom, re.DOTALL)[1].replace("&amp;", "&").split("\n")
    assert said == [
        "start: Step 0 of 2, the input ",
        "forward: Step 1 of 2 #step=1&replay=0",
        "left: Step 0 of 2, the input #step=0&replay=0",
        "end: Step 2 of 2 #step=2&replay=0",
        "live off",
        "played: Step 2 of 2 #step=2&replay=0",
        "live polite",
        "paused: Step 0 of 2, the input #step=0&replay=0",
        "scrubbed: Step 1 of 2 #step=0&replay=0",
        "picked: Step 0 of 1, the input #step=0&replay=1",
    ]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
def test_lines_of_a_text_begin_without_a_space_in_a_browser(tmp_path):
    tokens = [" Ida", " has", "\n", " 7", "\n", "  x"]
    steps = [[0] * 6, [0, 0, 1, 0, 0, 0]]
    masked = [[False] * 6, [False] * 6]
    masked[0][2] = True
    page = Replay([tokens, tokens], steps[1:], masked)
    write_html(page, tmp_path / "page.html")

    def shown(step):
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / str(step)}"]
        address = (tmp_path / "page.html").as_uri() + f"#step={step}"
        dom = subprocess.run([*command, address], capture_output=True, text=True, timeout=60, check=True).stdout
        prose = re.search(r'<div class="prose".*?>(.*?)</div>', dom, re.DOTALL)[1]
        return re.sub(r"<[^>]*>", "", prose)

    assert shown(1) == "Ida has↵\n7↵\n  x"  # two spaces are indentation
    assert shown(0).startswith("Ida has") and " 7" in shown(0)  # no line ends there yet
