"""Use of form and run page in a browser: start, watch, fail, read why, clear, compare, follow every link.

One run goes through all of it, so the tests stand in the order of its life. Only Chromium's clock and size are set by
the tests; Airflow, Slurm, verl and the Hub are real.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page

from testing.airflow import USER
from testing.airflow_api import ApiError
from testing.paths import ROOT
from testing.stack import DAG, RECIPE
from testing.waiting import until

SHOTS = ROOT / "build" / "browser"
# A machine ten times slower must pass.
PATIENCE_MS = 300_000
TRAINING_SECONDS = 3600
MODES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
EPOCH = "sft.trainer.total_epochs=1"
# Long enough to be watched and cancelled; the page gets new points every 10 seconds.
PPO_STEPS = 16
LONG_PPO = f"ppo.trainer.total_epochs=4\nppo.trainer.total_training_steps={PPO_STEPS}"
GUEST = "guest"


def log_in(context: BrowserContext, stack: Any, user: str) -> Page:
    page = context.new_page()
    page.goto(stack.airflow.url)
    page.locator("input[name=username]").fill(user)
    page.locator("input[name=password]").fill(stack.password(user))
    page.locator("button[type=submit]").click()
    page.wait_for_selector("input[name=password]", state="detached")
    return page


@pytest.fixture(scope="module")
def session(chromium: Browser, stack: Any) -> Any:
    """Login of the user, as the browser keeps it."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    log_in(context, stack, USER)
    until(lambda: any("token" in cookie["name"].lower() for cookie in context.cookies()), 60)
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture(scope="module")
def open_page(chromium: Browser, session: Any) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page of the user's, and fails at the end if a script of the run page did."""
    contexts, errors = [], []

    def make(mode: str = "light") -> Page:
        context = chromium.new_context(storage_state=session, **MODES[mode])
        theme = "dark" if mode == "dark" else "light"
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")  # as Airflow's own switch does
        context.set_default_timeout(PATIENCE_MS)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("pageerror", lambda error: "llm-bridge" in page.url and errors.append(str(error)))
        contexts.append(context)
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def page(open_page: Callable[..., Page]) -> Page:
    """The page that the user keeps open."""
    return open_page()


def form(page: Page, stack: Any) -> Locator:
    """Open the trigger form."""
    page.goto(f"{stack.airflow.url}/dags/{DAG}")
    page.get_by_role("button", name="Trigger").first.click()
    dialog = page.get_by_role("dialog")
    dialog.locator("#element_recipe").wait_for()
    return dialog


def section(dialog: Locator, title: str) -> None:
    dialog.get_by_role("button", name=title, exact=True).click()


def send(page: Page, dialog: Locator) -> Any:
    """Press the form's button and return Airflow's response."""
    with page.expect_response(lambda r: r.request.method == "POST" and r.url.endswith("/dagRuns")) as sent:
        dialog.get_by_role("button", name="Trigger", exact=True).last.click()
    return sent.value


def start(
    page: Page, stack: Any, name: str, overrides: str, stages: Sequence[str] = (), sft: Mapping[str, str] = {}
) -> str:
    """Start a run by the form and return its id; ``sft`` are fields of that section, which are typed."""
    dialog = form(page, stack)
    dialog.locator("#element_run_name").fill(name)
    if stages:
        section(dialog, "Stages")
        for stage in stages:
            box = dialog.locator("#element_stages").get_by_role("combobox")
            box.press_sequentially(stage)
            box.press("Enter")
    if sft:
        section(dialog, "SFT")
        for field, value in sft.items():
            dialog.locator(f"[name='element_{field}']").press_sequentially(value)
    section(dialog, "Settings of verl")
    dialog.locator("#element_overrides").fill(overrides)
    answer = send(page, dialog)
    assert answer.ok, answer.text()
    return str(answer.json()["dag_run_id"])


def run_url(stack: Any, run_id: str) -> str:
    return f"{stack.airflow.url}/llm-bridge/run?{urlencode({'dag_id': DAG, 'run_id': run_id})}"


def points(page: Page, title: str) -> int:
    """Return the number of points of a curve that the page shows."""
    box = page.locator(".chart", has=page.locator(".title", has_text=re.compile(f"^{re.escape(title)}$")))
    return int(box.first.get_attribute("data-points") or 0) if box.count() else 0


def shoot(open_page: Callable[..., Page], name: str, url: str, ready: str, before: Any = None) -> None:
    """Save a picture of one page in each mode, and check that nothing is wider than the screen."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    for mode in MODES:
        page = open_page(mode)
        page.goto(url)
        if before:
            before(page)
        page.locator(ready).first.wait_for()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=SHOTS / f"{name}-{mode}.png", full_page=True)
        if "/llm-bridge/" in url:
            width, screen = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert width <= screen, f"{name} is {width} wide on a screen of {screen} ({mode})"
            assert page.evaluate("document.documentElement.classList.contains('dark')") == (mode == "dark")
        page.context.close()


@pytest.fixture(scope="module")
def first(page: Page, stack: Any) -> str:
    """The run that the tests follow."""
    return start(page, stack, "first", f"{EPOCH}\n{LONG_PPO}")


# ---- the form


def test_the_form_has_titles_sections_and_the_recipe_of_this_airflow(
    page: Page, stack: Any, open_page: Callable[..., Page]
) -> None:
    dialog = form(page, stack)
    assert RECIPE in dialog.locator("#element_recipe").inner_text()
    assert dialog.locator("input[name=element_recipe]").input_value() == RECIPE
    said = dialog.inner_text()
    sections = ("Model", "Data", "SFT", "RL", "Evaluation", "Publishing", "Allocation", "Stages")
    for title in ("Recipe", "Cluster", "Run name", *sections, "Settings of verl"):
        assert title in said
    # No field shows its name in place of a title.
    labels = dialog.locator("label[data-part=label]").all_inner_texts()
    assert [label for label in labels if re.fullmatch(r"[a-z_.]+", label.strip())] == []

    def open_form(page: Page) -> None:
        page.get_by_role("button", name="Trigger").first.click()

    shoot(open_page, "form", f"{stack.airflow.url}/dags/{DAG}", "#element_recipe", open_form)


def test_a_number_below_the_minimum_is_corrected_by_the_form_and_refused_by_airflow(
    page: Page, stack: Any
) -> None:
    dialog = form(page, stack)
    section(dialog, "Allocation")
    nodes = dialog.locator("input[name=element_nodes]")
    nodes.fill("0")
    nodes.press("Tab")
    until(lambda: nodes.input_value() == "1", 60, what="the smallest number that is allowed")
    with pytest.raises(ApiError, match="0 is less than the minimum of 1"):
        stack.trigger(DAG, "no-nodes", nodes=0)


def test_the_first_task_refuses_a_wrong_setting_and_the_page_leads_to_its_message(
    page: Page, stack: Any
) -> None:
    run_id = start(page, stack, "refused", "trainer.total_epochs=1")
    assert stack.api.wait(DAG, run_id, 600) == "failed"
    page.goto(run_url(stack, run_id))
    link = page.locator('[data-slot="failures"]').get_by_role("link", name="check")
    page.goto(stack.airflow.url + (link.get_attribute("href") or ""))
    said = "line 1 (trainer.total_epochs=1): starts with 'trainer' instead of sft or ppo"
    page.get_by_text(said).first.wait_for()


# ---- a run's life


def test_curves_grow_while_the_run_trains(first: str, page: Page, stack: Any) -> None:
    page.goto(run_url(stack, first))
    page.get_by_role("heading", name="first").wait_for()
    until(lambda: points(page, "train/loss"), TRAINING_SECONDS, 1, "the first point of the loss")
    early = until(lambda: points(page, "critic/score/mean"), TRAINING_SECONDS, 0.5, "PPO's first step")
    until(lambda: points(page, "critic/score/mean") > early, TRAINING_SECONDS, 0.5, "more points")
    now = page.locator('[data-slot="now"]').inner_text()
    assert re.search(rf"ppo\.wait: .*step \d+ of {PPO_STEPS}", now), now


def test_a_cancelled_ppo_shows_its_diagnosis(
    first: str, page: Page, stack: Any, open_page: Callable[..., Page]
) -> None:
    job = stack.api.xcom(DAG, first, "ppo.ray_up", "slurm_job")["job_id"]
    stack.slurm("scancel", job, user="root")
    said = page.locator(".diagnosis", has_text="ppo.wait")
    said.wait_for(timeout=TRAINING_SECONDS * 1000)
    assert job in said.inner_text() and "cancelled" in said.inner_text()
    assert stack.api.wait(DAG, first, TRAINING_SECONDS) == "failed"
    log = stack.log(DAG, first, "ppo.wait")
    assert "Next: " in log and "error_detail" not in log, "a traceback of Airflow's"
    said = page.locator(".diagnosis", has_text="ppo.wait").first
    assert "What to do:" in said.inner_text() and "Next:" in said.inner_text()
    page.locator('[data-slot="head"] .badge', has_text="failed").wait_for()
    shoot(open_page, "failed", run_url(stack, first), ".diagnosis")


def test_the_cleared_run_recovers_and_keeps_the_failed_attempt_on_its_page(
    first: str, page: Page, stack: Any, open_page: Callable[..., Page]
) -> None:
    clear_failed(open_page(), stack, first)
    # The page follows the run again by itself.
    page.locator('[data-slot="head"] .badge', has_text=re.compile("queued|running")).wait_for()
    assert stack.api.wait(DAG, first, TRAINING_SECONDS) == "success"
    page.locator('[data-slot="head"] .badge', has_text="success").wait_for()
    table = page.locator('[data-slot="attempts"] tbody').first
    states = [row.split("\t")[:2] for row in table.inner_text().splitlines()]
    assert ["ppo.wait #1", "failed"] in states
    assert any(task.startswith("ppo.wait #") and state == "success" for task, state in states), states
    # What a finished run shows.
    for slot, text in (
        ("evaluation", "Score"),
        ("data", "rows as the model sees them"),
        ("more", "Model on the Hub"),
    ):
        assert text in page.locator(f'[data-slot="{slot}"]').inner_text()
    assert points(page, "critic/score/mean") == PPO_STEPS


def clear_failed(page: Page, stack: Any, run_id: str) -> None:
    """Clear the failed tasks of a run with Airflow's own button."""
    page.goto(f"{stack.airflow.url}/dags/{DAG}/runs/{run_id}")
    page.get_by_role("button", name=re.compile("Clear Dag Run|to clear$")).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Clear only failed tasks").click()
    with page.expect_response(
        lambda r: 'dry_run":false' in (r.request.post_data or "").replace(" ", "")
    ) as sent:
        dialog.get_by_role("button", name="Confirm").click()
    assert sent.value.ok, sent.value.text()


# ---- looking back


def test_every_link_of_the_page_leads_somewhere_and_every_command_can_be_copied(
    first: str, page: Page, stack: Any
) -> None:
    page.goto(run_url(stack, first))
    page.locator('[data-slot="more"] a').first.wait_for()
    links = {link.get_attribute("href") or "": link.inner_text() for link in page.locator("main a").all()}
    assert len(links) > 10
    ours = urlsplit(stack.airflow.url).netloc
    for href, text in links.items():
        address = page.evaluate("href => new URL(href, document.baseURI).href", href)
        parts = urlsplit(address)
        assert parts.scheme in ("http", "https") and parts.netloc, f"{text}: {href}"
        if parts.netloc == ours:
            assert page.request.get(address).status == 200, f"{text}: {address}"
            # Airflow answers 200 to any path of its pages, which their scripts then fill from its API.
            of_api = parts.path.replace("/runs/", "/dagRuns/").replace("/tasks/", "/taskInstances/")
            if parts.path.startswith("/dags/"):
                answer = page.request.get(f"{stack.airflow.url}/api/v2{of_api}")
                assert answer.status == 200, f"{text}: {address}"
    # Airflow's pages are made by its scripts: one task's log has to be there, too.
    commands = page.locator(".command")
    assert commands.count() >= 1
    for command in commands.all():
        text = command.locator("pre").inner_text()
        assert shlex.split(text)[0] in {"ls", "tail", "scontrol", "squeue", "sacct", "scancel"}, text
        command.get_by_role("button").click()
        assert page.evaluate("navigator.clipboard.readText()") == text


def test_a_link_to_a_task_shows_its_log_in_airflow(first: str, page: Page, stack: Any) -> None:
    page.goto(run_url(stack, first))
    link = page.locator('[data-slot="more"]').get_by_role("link", name="prepare.run")
    page.goto(stack.airflow.url + (link.get_attribute("href") or ""))
    page.get_by_text(re.compile("Slurm job")).first.wait_for()


def test_two_runs_are_compared(first: str, page: Page, stack: Any, open_page: Callable[..., Page]) -> None:
    second = start(page, stack, "second", EPOCH, stages=("prepare", "sft"), sft={"sft.optim.lr": "1e-3"})
    assert stack.api.wait(DAG, second, TRAINING_SECONDS) == "success"
    page.goto(f"{stack.airflow.url}/llm-bridge/runs")
    button = page.get_by_role("button", name="Compare the selected runs")
    button.wait_for()
    assert button.is_disabled()
    for name in ("first", "second"):
        page.locator("tr", has=page.get_by_role("link", name=name, exact=True)).get_by_role(
            "checkbox"
        ).check()
    button.click()
    page.get_by_role("heading", name="Settings that differ").wait_for()
    said = page.locator("main").inner_text()
    assert "sft.verl.optim.lr" in said and "0.001" in said
    assert points(page, "train/loss") == 8, "four steps of each run"
    url = page.url
    shoot(open_page, "compare", url, ".chart canvas")
    shoot(open_page, "list", f"{stack.airflow.url}/llm-bridge/runs", "tbody tr")


def test_pictures_of_the_finished_run(first: str, stack: Any, open_page: Callable[..., Page]) -> None:
    shoot(open_page, "run", run_url(stack, first), ".chart canvas")
    page = open_page()
    page.goto(f"{stack.airflow.url}/dags/{DAG}/runs/{first}/plugin/training")
    frame = page.frame_locator("iframe")
    frame.locator(".chart canvas").first.wait_for()
    page.screenshot(path=SHOTS / "in-airflow-light.png")


# ---- who may not look


def test_nobody_without_login_and_no_user_without_permission_sees_a_run(
    first: str, chromium: Browser, stack: Any
) -> None:
    url = f"{stack.airflow.url}/llm-bridge/api/runs/{DAG}/{first}"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(run_url(stack, first), trust_env=False).status_code == 401
    with pytest.raises(ApiError, match="403"):
        stack.api_of(GUEST).ask("GET", f"/llm-bridge/api/runs/{DAG}/{first}")
    context = chromium.new_context(**MODES["light"])
    context.set_default_timeout(PATIENCE_MS)
    page = log_in(context, stack, GUEST)
    page.goto(run_url(stack, first))
    page.get_by_text("You may not read this DAG").wait_for()
    assert "tiny-llama" not in page.locator("body").inner_text()
    context.close()
