"""The report as one web page: all inside it, nothing fetched, nothing that was text taken for markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import queue
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.run.metrics import EPOCH_TABLE
from ddpm.run.paths import RunPaths
from metrics.html import main, to_html, write_html
from metrics.page import to_markdown
from metrics.plots import plots_of
from metrics.report import report_page
from metrics.run_reader import load_run
from tests.support.metrics_documents import make_document

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """A page's elements with their attributes, the rows of its tables, its text and its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.text, self.script = "", ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.script += data
        elif "style" not in self._open:
            self.text += data
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def pictures(self) -> list[dict]:
        """Those of the Markdown; the viewer's own has no source until it is opened."""
        return [picture for picture in self.all("img") if "src" in picture]


def make_run(root: Path, epochs: int = 3, **changes) -> RunPaths:
    """A run with a report in Markdown; small pictures stand for the plots, which take seconds to draw."""
    document = make_document(epochs, **changes)
    paths = RunPaths(root, document["run"])
    paths.samples.mkdir(parents=True)
    paths.plots.mkdir()
    paths.json.write_text(json.dumps(document))
    Image.new("L", (90, 60)).save(paths.samples / f"{document['data']}_epoch_0003.png")
    run = load_run(paths)
    for number, name in enumerate(plots_of(run)):
        Image.new("RGB", (900, 450), (13, 17, 10 * number)).save(paths.plots / f"{name}.png")
    paths.report.write_text(to_markdown(report_page(run), paths.metrics))
    return paths


def page_of(folder: Path, markdown: str) -> Page:
    (folder / "page.md").write_text(markdown)
    return Page(to_html(folder / "page.md", "a <title>"))


def pixels(picture: dict) -> np.ndarray:
    head, _, content = picture["src"].partition(",")
    assert re.fullmatch(r"data:image/(png|webp);base64", head)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_every_picture_of_the_report_is_inside_the_page(tmp_path: Path) -> None:
    paths = make_run(tmp_path)
    page = Page(write_html(paths).read_text())
    places = re.findall(r"!\[\w+\]\(([^)]*)\)", paths.report.read_text())
    assert len(page.pictures()) == len(places) >= 12
    for place, picture in zip(places, page.pictures(), strict=True):
        original = np.asarray(Image.open(paths.metrics / place).convert("RGB"))
        np.testing.assert_array_equal(pixels(picture), original)
        assert (int(picture["width"]), int(picture["height"])) == original.shape[1::-1]
        assert picture["alt"] == Path(place).stem


def test_the_tables_say_what_the_metrics_say(tmp_path: Path) -> None:
    document = make_document(4)
    page = Page(write_html(make_run(tmp_path, 4)).read_text())
    measured = [metric for metric in EPOCH_TABLE if metric.name in document["epochs"][0]]
    heads = page.rows.index([metric.heading for metric in measured])
    for row, cells in zip(document["epochs"], page.rows[heads + 1 : heads + 5], strict=True):
        assert cells == [metric.text_of(row) for metric in measured]
    summary = {row[0]: row[1] for row in page.rows}
    assert summary["best_loss"] == f"{min(row['loss_mean'] for row in document['epochs']):.5f}"


def test_it_is_the_report_and_not_its_model_card_head(tmp_path: Path) -> None:
    page = Page(write_html(make_run(tmp_path, data="glyphs")).read_text())
    assert "embedded glyphs, not EMNIST" in page.text
    assert "pipeline_tag" not in page.text and "library_name" not in page.text


def test_the_contents_lead_to_the_headings(tmp_path: Path) -> None:
    page = page_of(tmp_path, "# Title\n\n## One `x_y`\n\n### Two\n\n## Two\n\n#### Four")
    identities = [attributes["id"] for tag, attributes in page.elements if tag in ("h2", "h3")]
    assert len(set(identities)) == 3
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in identities]
    assert page.text.count("One x_y") == 2  # in the list and as the heading


def test_a_large_picture_is_made_smaller_but_keeps_its_pixels(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (100, 150), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    rough = blocks ^ np.random.default_rng(1).integers(0, 8, blocks.shape, dtype=np.uint8)
    Image.fromarray(rough).save(tmp_path / "grid.png")
    (picture,) = page_of(tmp_path, "![grid](grid.png)").pictures()
    assert len(picture["src"]) < (tmp_path / "grid.png").stat().st_size / 2
    assert pixels(picture).shape == (*rough.shape, 3)
    assert np.abs(pixels(picture).astype(int) - rough[..., None]).mean() < 8  # of 255: the same picture to the eye


@pytest.mark.parametrize("damage", ["gone", "half", "text", "folder"])
def test_a_picture_that_cannot_be_shown_is_named_and_costs_nothing_else(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "loss log.png"
    if damage == "folder":
        file.mkdir()
    elif damage != "gone":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), dtype=np.uint8)).save(file)
        file.write_bytes(file.read_bytes()[:900] if damage == "half" else b"no picture")
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    page = page_of(tmp_path, "![loss](loss%20log.png)\n\n![b](b.png)\n\nThe end.")
    assert len(page.pictures()) == 1 and "The end." in page.text
    reason = "is not there" if damage == "gone" else "cannot be read as a picture"
    assert f"loss: loss log.png {reason}" in page.text


def test_markup_in_names_and_messages_is_shown_as_text(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script> <img src=x onerror=alert(1)> <style>*{display:none}</style>'
    markdown = f"# Run {hostile}\n\n## {hostile}\n\n| a |\n| --- |\n| {hostile} |\n\n{hostile}\n\n```\n{hostile}\n```\n"
    page = page_of(tmp_path, markdown + f"\n<details><summary>{hostile}</summary>\n\nx\n\n</details>\n")
    assert page.text.count(hostile) == 7  # once more in the contents
    assert "alert" not in page.script and page.pictures() == []
    assert len(page.all("style")) == len(page.all("script")) == len(page.all("details")) == 1


def test_nothing_of_another_host_is_fetched(tmp_path: Path) -> None:
    far = "![far](https://example.org/a.png) ![near](//example.org/b.png)"
    page = page_of(tmp_path, f"{far} [bad](javascript:alert(1)) [csv](a%20b.csv)")
    assert page.pictures() == []
    assert [link["href"] for link in page.all("a")] == [
        "https://example.org/a.png", "//example.org/b.png", "a%20b.csv",
    ]  # fmt: skip
    (rules,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in rules.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"  # this script and no other


def test_long_parts_fold_and_comments_are_left_out(tmp_path: Path) -> None:
    settings = json.dumps({"a": 1, "b": "<b>"}, indent=2)
    folded = "<details><summary>Images of each class</summary>\n\n| a |\n| --- |\n| 1 |\n\n</details>"
    page = page_of(tmp_path, f"```json\n{settings}\n```\n\n{folded}\n\n```\nas it is\n```\n")
    assert len(page.all("details")) == len(page.all("summary")) == 2
    assert "JSON (4 lines)" in page.text and "Images of each class" in page.text and settings in page.text
    noted = page_of(tmp_path, "<!-- written by\na program -->\n\n<!-- a --> b <!-- c -->\n")
    assert "program" not in noted.text and "<!-- a --> b" in noted.text
    unclosed = page_of(tmp_path, "<details><summary>never closed</summary>\n\nThe rest.\n")
    assert unclosed.all("details") == [] and "<details>" in unclosed.text and "The rest." in unclosed.text


@pytest.mark.parametrize("epochs", [0, 1])
def test_runs_that_have_hardly_begun_have_a_page(tmp_path: Path, epochs: int) -> None:
    page = Page(write_html(make_run(tmp_path, epochs, gpu=False, state="running")).read_text())
    assert "In progress" in page.text and f"epoch {epochs} of 100" in page.text


def test_made_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = make_run(tmp_path, run="a_run")
    assert main(["a_run", "--output-root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(paths.report_html)
    (tmp_path / "health.md").write_text("# Health\n\nGood.")
    assert main([str(tmp_path / "health.md")]) == 0
    assert "Good." in Page((tmp_path / "health.html").read_text()).text


def test_a_page_that_is_not_there_is_not_taken_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "nope.md")]) == 2
    assert capsys.readouterr().err == f"error: there is no page {tmp_path / 'nope.md'}\n"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_without_a_report_it_says_what_to_do_and_keeps_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes | None
) -> None:
    paths = make_run(tmp_path, run="a_run")
    page = write_html(paths).read_bytes()
    paths.report.unlink()
    if content is not None:
        paths.report.write_bytes(content)
    assert main(["a_run", "--output-root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "training_report.md" in err
    assert paths.report_html.read_bytes() == page


# In a real browser.

PROBE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe width="WIDTH" height="844" src="training_report.html"></iframe><script>
document.querySelector("iframe").onload = async ({target}) => {
  const page = target.contentDocument, root = page.documentElement;
  const pictures = [...page.querySelectorAll("main img")];
  const viewer = page.querySelector("dialog"), enlarged = viewer.querySelector("img");
  const said = {
    width: target.contentWindow.innerWidth,
    needed: root.scrollWidth,
    pictures: pictures.length,
    loaded: pictures.filter((picture) => picture.naturalWidth > 0).length,
    wide: [...page.querySelectorAll("main > *")].filter((part) => part.getBoundingClientRect().right > WIDTH).length,
    scrolling: [...page.querySelectorAll(".table")].filter((box) => box.scrollWidth > box.clientWidth).length,
    closed: !viewer.open,
  };
  page.querySelectorAll("a.picture")[1].click();
  await enlarged.decode();
  said.enlarged = viewer.open && enlarged.src === pictures[1].src;
  viewer.querySelector("[data-step='1']").click();
  said.next = enlarged.src === pictures[2].src;
  enlarged.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
  said.back = enlarged.src === pictures[1].src;
  viewer.querySelector("[data-close]").click();
  said.closedAgain = !viewer.open;
  fetch("said", {method: "POST", body: JSON.stringify(said)});
};
</script>"""


@pytest.fixture(scope="module")
def chromium_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of headless Chromium, without a network."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not here (apt-get install chromium): the page was not looked at in a browser")
    profile = tmp_path_factory.mktemp("profile")
    return [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--hide-scrollbars", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chromium(chromium_command: list[str], tmp_path_factory: pytest.TempPathFactory):
    """Runs Chromium with the given arguments; returns what it prints."""
    folder = tmp_path_factory.mktemp("browser")

    def start(*arguments: str) -> str:
        return subprocess.run(
            [*chromium_command, *arguments], capture_output=True, text=True, timeout=60, check=True, cwd=folder
        ).stdout

    return start


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run with a long name, forty epochs and a page."""
    name = "balanced_cfg_cosine_ema_600_steps_large_with_quite_a_long_name_to_break"
    paths = make_run(tmp_path_factory.mktemp("run"), 40, run=name)
    write_html(paths)
    return paths


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_all_is_there_and_nothing_sticks_out(chromium_command, browsed: RunPaths, width: int) -> None:
    requests: list[str] = []
    answers: queue.Queue[bytes] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            answers.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, form: str, *values: object) -> None:
            requests.append(self.path)

    (browsed.metrics / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=browsed.metrics))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = f"http://127.0.0.1:{server.server_port}/probe.html"
    browser = subprocess.Popen([*chromium_command, "--remote-debugging-port=0", page], stderr=subprocess.DEVNULL)
    try:
        said = json.loads(answers.get(timeout=60))
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()
        thread.join()
        server.server_close()
    assert said["width"] == width and said["needed"] <= width and said["wide"] == 0
    assert said["loaded"] == said["pictures"] >= 12
    assert said["closed"] and said["enlarged"] and said["next"] and said["closedAgain"]
    assert said["back"] == (width == 1280)  # on a phone it is larger than the screen, and the arrow keys scroll it
    assert (said["scrolling"] > 0) == (width == 390)  # wide tables scroll in their own box
    assert sorted(requests) == ["/probe.html", "/said", "/training_report.html"]


def test_short_cells_stay_on_one_line_though_a_long_one_squeezes_them(chromium, tmp_path: Path) -> None:
    short = ("2026-11-21 11:52:59", "0m 00s", "✓ healthy", "1.543e-07")
    rows = ["a | b | c | d | e", "|".join(["---"] * 5), " | ".join([*short, "long " * 90])]
    (tmp_path / "page.md").write_text("\n".join(f"| {row} |" for row in rows))
    probe = """<p id="said"></p><script>
        document.getElementById("said").textContent = [...document.querySelectorAll("td")].map((cell) => {
          const text = new Range();
          text.selectNodeContents(cell);
          return text.getClientRects().length;
        }).join(" ");
        </script>"""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", to_html(tmp_path / "page.md", "a title"))
    (tmp_path / "page.html").write_text(page + probe)
    done = chromium("--dump-dom", "--window-size=1200,900", (tmp_path / "page.html").as_uri())
    lines = [int(count) for count in re.search(r'<p id="said">(.+?)</p>', done)[1].split()]
    assert lines[:4] == [1] * 4 and lines[4] > 1


@pytest.mark.parametrize(("scheme", "ground"), [(0, (13, 17, 23)), (1, (255, 255, 255))], ids=["dark", "light"])
def test_a_screenshot_is_light_or_dark_as_the_reader_prefers(
    chromium, browsed: RunPaths, tmp_path: Path, scheme: int, ground: tuple
) -> None:
    file = tmp_path / "page.png"
    chromium(
        f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={file}", "--window-size=1280,900",
        browsed.report_html.as_uri(),
    )  # fmt: skip
    shot = np.asarray(Image.open(file).convert("RGB"))
    assert shot.shape[1] == 1280
    assert tuple(shot[2, 2]) == ground
    assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 50  # there is text, and more than the ground
