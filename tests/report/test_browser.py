"""The page in a real browser: Chromium, headless, from a file and without a network."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from aloe.config import PRESETS
from aloe.experience.store import ExperienceStore
from aloe.loop import run_circle
from aloe.report.folder import RunSoFar
from aloe.report.page import write_page
from aloe.report.text import task_table
from aloe.stages import DemosConfig
from aloe.types import Source

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("these tests need Chromium: sudo apt-get install -y chromium (`make test` does it where it may)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page and what it complained of, or asked the network for."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def selected(self) -> int:
        return int(self.page.locator("#list [aria-selected=true]").get_attribute("data-episode") or -1)

    def listed(self) -> list[int]:
        items = self.page.locator("#list [role=option]")
        return [int(items.nth(i).get_attribute("data-episode") or -1) for i in range(items.count())]

    def step(self) -> int:
        return int(self.page.locator(".timeline").get_attribute("aria-valuenow") or -1)

    def click_step(self, step: int, steps: int) -> None:
        """Clicks where that step is drawn: the axis leaves 40 px on the left and 10 on the right."""
        line = self.page.locator(".timeline")
        line.scroll_into_view_if_needed()
        box = line.bounding_box()
        assert box is not None
        x = box["x"] + 40 + (step + 0.5) / steps * (box["width"] - 50)
        self.page.mouse.click(x, box["y"] + box["height"] / 2)

    def picture(self) -> np.ndarray:
        """What the video shows, (h, w, 3), once it has come to rest."""
        self.page.wait_for_function(
            "(video => !video.seeking && video.readyState >= 2)(document.querySelector('video'))"
        )
        self.page.wait_for_timeout(100)
        width, height, flat = self.page.evaluate(
            """() => {
                const video = document.querySelector('video');
                const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
                const context = canvas.getContext('2d');
                context.drawImage(video, 0, 0);
                const { width, height, data } = context.getImageData(0, 0, canvas.width, canvas.height);
                return [width, height, Array.from(data)];
            }"""
        )
        return np.array(flat, np.uint8).reshape(height, width, 4)[..., :3]


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Makes the page of runs and opens it."""
    pages: list[Page] = []

    def show(*runs: Path, width: int = 1400, scheme: str = "light") -> Opened:
        path = tmp_path / "report.html"
        write_page([RunSoFar.read(run) for run in runs], path, episodes=30)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
        pages.append(page)
        opened = Opened(page)
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("blob:", "data:", path.as_uri())) or opened.complaints.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        return opened

    yield show
    for page in pages:
        page.close()


def episodes_of(page: Page) -> list[dict]:
    return json.loads(page.locator("#data").text_content() or "")["episodes"]


def test_a_click_on_the_time_line_moves_the_video_to_that_very_picture(finished: Path, show) -> None:
    opened = show(finished)
    episodes = episodes_of(opened.page)
    longest = max(range(5), key=lambda i: episodes[i]["steps"])
    opened.page.locator(f"#episode-{longest}").click()
    recorded = ExperienceStore.read(finished / "experience").pictures(longest)
    camera = episodes[longest]["video"]["places"][0][0]
    steps = episodes[longest]["steps"]
    for step in (steps - 2, 1, steps // 2):
        opened.click_step(step, steps)
        assert opened.step() == step
        # 32 px become 160: the middle of each block of 5 is the pixel that was recorded.
        shown = opened.picture()[2:160:5, 2:160:5].astype(int)
        apart = np.abs(recorded[camera].astype(int) - shown).mean((1, 2, 3))
        assert apart[step] < 12
        assert apart[step] == pytest.approx(apart.min(), abs=0.3)  # two pictures may be nearly the same
    assert opened.complaints == []


def test_keys_step_play_and_go_to_another_episode(finished: Path, show) -> None:
    opened = show(finished)
    page = opened.page
    page.locator("#list").focus()
    steps = episodes_of(page)[opened.selected()]["steps"]
    for key, step in (("ArrowRight", 1), ("Shift+ArrowRight", 11), ("ArrowLeft", 10), ("End", steps - 1), ("Home", 0)):
        page.keyboard.press(key)
        assert opened.step() == step
    page.keyboard.press("Space")
    page.wait_for_function(
        "!document.querySelector('video').paused && document.querySelector('video').currentTime > 0.1"
    )
    assert page.locator(".play").text_content() == "❚❚ Pause"
    page.keyboard.press("Space")
    assert page.evaluate("document.querySelector('video').paused")
    first, second, *_ = opened.listed()
    assert opened.selected() == first
    page.keyboard.press("ArrowDown")
    assert opened.selected() == second
    page.keyboard.press("ArrowUp")
    assert opened.selected() == first
    assert opened.complaints == []


def test_the_cursor_follows_the_video_to_its_end(finished: Path, show) -> None:
    opened = show(finished)
    opened.page.locator(".transport select").select_option("2")
    opened.page.locator(".play").click()
    steps = episodes_of(opened.page)[opened.selected()]["steps"]
    opened.page.wait_for_function(f"document.querySelector('.timeline').getAttribute('aria-valuenow') == {steps - 1}")
    opened.page.wait_for_function("document.querySelector('.play').textContent == '▶ Play'")
    cursor = opened.page.locator(".timeline .cursor").first
    box = opened.page.locator(".timeline").bounding_box()
    assert box is not None
    assert float(cursor.get_attribute("x1") or 0) == pytest.approx(
        40 + (steps - 0.5) / steps * (box["width"] - 50), abs=1
    )


def test_sorting_sorts(finished: Path, show) -> None:
    opened = show(finished)
    episodes = episodes_of(opened.page)
    assert len(episodes) == 7  # 2 demonstrations, 3 collected, 2 fresh
    numbers = {
        "drop": [episode["drop"]["by"] for episode in episodes],
        "disagreement": [abs(episode["disagreement"]) for episode in episodes],
        "takeovers": [len(episode["takeovers"]) for episode in episodes],
        "number": [-i for i in range(7)],
    }
    for sort, values in numbers.items():
        opened.page.locator("select[name=sort]").select_option(sort)
        listed = opened.listed()
        assert sorted(listed) == list(range(7))
        assert [values[i] for i in listed] == sorted(values, reverse=True)
        assert opened.selected() == listed[0]
    assert opened.complaints == []


def test_filters_filter(finished: Path, show) -> None:
    opened = show(finished)
    page, episodes = opened.page, episodes_of(opened.page)
    page.locator("select[name=kind]").select_option("has not seen it")
    assert sorted(opened.listed()) == [5, 6]
    assert page.locator("#count").text_content() == "2 of 7 episodes"
    page.locator("select[name=actor]").select_option("demonstration")
    assert opened.listed() == []
    assert page.locator("#count").text_content() == "No episode fits all of these filters."
    page.locator("select[name=kind]").select_option("")
    assert sorted(opened.listed()) == [0, 1]
    page.locator("select[name=actor]").select_option("policy and human")
    with_human = [i for i, one in enumerate(episodes) if any(part["source"] == "human" for part in one["actors"])]
    assert sorted(opened.listed()) == with_human
    frames = ExperienceStore.read(finished / "experience").columns()
    assert with_human == sorted(set(frames.episode[frames.source == Source.HUMAN].tolist()))


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_sticks_out_and_both_themes_are_drawn(finished: Path, show, width: int) -> None:
    for scheme, paper, other in (("light", "rgb(255, 255, 255)", "Dark"), ("dark", "rgb(20, 23, 27)", "Light")):
        opened = show(finished, width=width, scheme=scheme)
        page = opened.page
        page.wait_for_selector("#curve svg")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        background = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(background) == paper
        assert page.locator("#theme").text_content() == other
        page.locator("#theme").click()
        assert page.evaluate(background) != paper
        assert page.locator("#theme").text_content() == scheme.title()
        assert opened.complaints == []


def test_several_runs_are_compared(finished: Path, copy_of, show) -> None:
    other = copy_of(finished)
    config = json.loads((other / "config.json").read_text())
    config["seed"], config["aloe"]["clip"] = 5, 2.0
    (other / "config.json").write_text(json.dumps(config))
    opened = show(finished, other)
    page = opened.page
    assert page.locator("#title").text_content() == "2 runs compared"
    assert page.locator("#curve .line").count() == 2
    assert page.locator("#curve .band").count() == 2
    assert page.locator("#runs tbody th").all_text_contents() == ["aloe, seed 0", "aloe, seed 5"]
    assert page.locator("#differences tbody tr").all_inner_texts() == ["--aloe.clip\t3\t2"]
    assert page.locator("#episodes").is_hidden()
    before = page.locator("#curve path").first.get_attribute("d")
    page.locator("#against").get_by_text("human steps").click()
    assert page.locator("#curve path").first.get_attribute("d") != before
    assert opened.complaints == []


def test_a_run_of_two_tasks_without_critics_and_pictures_has_success_by_task_who_acted_and_a_clock(
    tmp_path: Path, show, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = PRESETS["tiny"]
    world = replace(tiny.world, observations="state", also=("pick-place-v3",), max_steps=40)
    config = replace(tiny, rounds=1, method="dagger", demos=DemosConfig(episodes=1), world=world)
    run = run_circle(config, tmp_path / "run", say=lambda _: None)
    opened = show(run.root)
    page = opened.page
    # Three episodes, the tasks in turn: two of the first, one of the second.
    shown = page.locator("#tasks tr").all_inner_texts()
    measured = [row["by_task"] for row in json.loads((run.root / "summary.json").read_text())["rounds"]]
    assert shown[0] == "task\tround 0\tround 1"
    for line, task, played in zip(
        shown[1:], ("pick up the puck and place it at the goal", "reach the goal"), (1, 2), strict=True
    ):
        assert [row[task][1] for row in measured] == [played, played]
        assert line == "\t".join([task, *(f"{row[task][0]} of {played}" for row in measured)])
    Console().print(task_table(RunSoFar.read(run.root)))
    assert f"{measured[1]['reach the goal'][0]} of 2" in capsys.readouterr().out
    assert page.locator("#health").is_hidden()
    assert page.locator("video").count() == 0
    assert "This run has no pictures" in (page.locator("#note").text_content() or "")
    assert page.locator(".timeline .actor").count() >= 1
    page.locator(".play").click()
    page.wait_for_function("document.querySelector('.timeline').getAttribute('aria-valuenow') > 2")
    assert opened.complaints == []


def test_names_are_text_and_never_run(finished: Path, copy_of, show) -> None:
    name = "<img src=x onerror=alert(1)>"
    run = copy_of(finished, name)
    config = json.loads((run / "config.json").read_text())
    config["world"]["task"] = "</script><script>alert(2)</script>{{videos}}"
    (run / "config.json").write_text(json.dumps(config))
    opened = show(run)
    assert config["world"]["task"] in (opened.page.locator("#title").text_content() or "")
    assert name in opened.page.locator("#facts dd").all_text_contents()
    assert opened.complaints == []
