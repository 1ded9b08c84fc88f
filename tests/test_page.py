"""The page of `degrade report` in a browser: it runs nothing that a model said, needs nothing else, and can be read."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from runner.report import report

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no chromium or no chromedriver on the PATH"),
]

PROMPTS = ["Tell me a dream in <b>bold</b> & more.", "What is 2 + 2?", "Where are we going?"]
SWEEPS = {"mult_gauss": [0.0, 0.3, 0.6], "uni_quant": [256.0, 16.0, 4.0]}
HOSTILE = (
    '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'"></td></tr></table>'
    "\x1b[31mred\x1b[0m \u202egnp.exe\u202c end of it."
)
REPEATS = 10
MOST_SECONDS = 20  # until a page is drawn
NAMES = ("Anna", "Berta", "Clara", "Dora", "Emil", "Fritz")
TEXTS = (  # the more damage, the worse
    "Last night I walked by a calm river while small birds sang above old bridges. {} came along, and we talked.",
    "The river the bridge was and {} bird the bridge walked stone. The bread talked red and the river was gone.",
    "the the of {} " + "stone bridge of stone " * 30,
)


def _record(method: str, damage: int, repeat: int, prompt: int) -> dict[str, Any]:
    """What one damaged model said to one prompt; the text that the page shows of the middle Gauss level is hostile."""
    level, number = SWEEPS[method][damage], 3 * repeat + prompt - 1
    output = TEXTS[damage].format(NAMES[number % len(NAMES)])
    if (method, damage, repeat, prompt) == ("mult_gauss", 1, 0, 1):
        output = HOSTILE
    finish = "length" if damage == 2 else "eos"
    if (method, damage) == ("uni_quant", 2) and prompt > 1:
        output, finish = "", "nonfinite"
    return {
        "timestamp": f"2026-11-22T13:31:{damage:02}.{number:03}+00:00",
        "experiment_id": f"{method}|tiny/model|planted",
        "config_name": "planted",
        "prompt_group": "planted",
        "model_name": "tiny/model",
        "degradation_method": method,
        "param_group_name": "attn_only",
        "std_dev": level,
        "level_value": level,
        "level_index": damage,
        "repeat_index": repeat,
        "seed": 42 + repeat,
        "prompt_id": prompt,
        "prompt_text": PROMPTS[prompt - 1],
        "output": output,
        "tokens": len(output.split()),
        "tokens_out": len(output.split()),
        "finish_reason": finish,
        "weights_digest": f"{damage:08x}{repeat if damage and method == 'mult_gauss' else 0:08x}",
        "perplexity": 10.0 ** (1 + damage) * (1 + 0.1 * damage * repeat),
        "duration": 0.5,
    }


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about two sweeps of three levels, ten repeats and three prompts: 30 texts a level have effect sizes."""
    folder = tmp_path_factory.mktemp("page")
    records = [
        _record(method, damage, repeat, prompt)
        for method in SWEEPS
        for damage in range(3)
        for repeat in range(REPEATS)
        for prompt in (1, 2, 3)
    ]
    results = folder / "outputs_mult_gauss_model_planted.json"
    results.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", encoding="utf-8")
    return report([results], folder / "report", texts=0)


@pytest.fixture(scope="session")
def driver() -> Iterator[Chrome]:
    """Chromium without a screen and without a network, that tells what a page asks for and complains about."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # in a container it has no namespaces to build one from
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    with Chrome(options=options, service=ChromeService(CHROMEDRIVER)) as chrome:
        yield chrome


@pytest.fixture
def page(driver: Chrome, path: Path) -> Chrome:
    """The page, loaded anew on a wide window, with everything on it unfolded; the logs hold this visit only."""
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    _window(driver, 1400, 900)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.get(path.as_uri())
    driver.execute_script("document.querySelectorAll('details').forEach((details) => details.open = true)")
    WebDriverWait(driver, MOST_SECONDS).until(_is_unfolded)  # a text that is not drawn yet is empty
    return driver


def _is_unfolded(driver: Chrome) -> bool:
    return all(table.is_displayed() for table in driver.find_elements(By.CSS_SELECTOR, "details table"))


def _window(driver: Chrome, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_it_asks_for_nothing_and_complains_about_nothing(page: Chrome, path: Path) -> None:
    """The one request is the page itself, and the console stays empty."""
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked == [path.as_uri()]


def test_it_is_one_file(path: Path) -> None:
    """Nothing in the page refers to anything outside of it, apart from the names of XML namespaces."""
    html = path.read_text(encoding="utf-8")
    tags = " ".join(re.findall(r"<[a-zA-Z][^>]*>", html))
    refers = re.findall(r"""\b(?:src|href|srcset|action|data)=["']?([^"'\s>]*)""", tags)
    assert refers, "the page has links between its sections"
    assert [target for target in refers if not target.startswith("#")] == []
    assert [target for target in re.findall(r"url\(([^)]*)\)", html) if not target.strip("\"'").startswith("#")] == []
    assert "@import" not in html
    assert re.findall(r"https?://", re.sub(r'\bxmlns(:\w+)?="[^"]*"', "", tags)) == []


def test_what_a_model_said_is_text(page: Chrome) -> None:
    """Markup in an output or a prompt is shown as it was said; nothing of it runs or becomes an element."""
    assert page.title == "degrade: planted, model"
    assert page.find_elements(By.TAG_NAME, "img") == []
    assert page.execute_script("return [...document.scripts].map((script) => script.nonce)") == ["degrade"]
    said = page.execute_script("return [...document.querySelectorAll('td.said')].map((cell) => cell.textContent)")
    assert len(said) == 6, "a </table> in a text has broken the table"
    assert said[1] == re.sub("[\x1b\u202e\u202c]", "\ufffd", HOSTILE)
    assert page.find_elements(By.TAG_NAME, "b") == []
    prompts = page.execute_script(
        "return [...document.querySelectorAll('summary .soft')].map((each) => each.innerText)"
    )
    assert prompts == [PROMPTS[0]] * 2


def test_no_control_character_is_in_the_file(path: Path) -> None:
    """Shown in a terminal or an editor, the page neither moves the cursor nor turns text around."""
    html = path.read_text(encoding="utf-8")
    strange = {char for char in html if not char.isprintable()} - {"\n"}
    assert strange == set(), sorted(map(hex, map(ord, strange)))


def test_a_loop_and_missing_numbers_are_marked(page: Chrome) -> None:
    """The rows of texts that end in a loop, and no others, are marked and say so."""
    rows = page.find_elements(By.XPATH, "//td[contains(@class, 'said')]/..")
    assert [row.get_attribute("class") for row in rows] == ["", "", "broken"] * 2
    assert [row.find_elements(By.TAG_NAME, "td")[-1].text for row in rows] == ["itself", "itself", "a loop"] * 2


STATE = """
const [table, column] = arguments, rows = [...table.tBodies[0].rows];
const value = (cell) => cell.dataset.value ?? cell.textContent.replace("%", "").trim();
return [rows.map((row) => value(row.cells[column])), rows.map((row) => row.outerHTML),
  [...table.tHead.rows[0].cells].map((heading) => heading.getAttribute("aria-sort"))];
"""
IN_ORDER = "return arguments[0].every((text, i, all) => i === 0 || all[i - 1].localeCompare(text) <= 0)"


def _ascends(page: Chrome, values: Sequence[str]) -> bool:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return bool(page.execute_script(IN_ORDER, list(values)))
    return numbers == sorted(numbers)


def test_a_click_on_a_heading_sorts(page: Chrome) -> None:
    """First upwards, then downwards, what has no value last; no row is lost; the heading says which way it went."""
    tables = page.find_elements(By.CSS_SELECTOR, "table.sortable")
    assert len(tables) == 3
    missing = 0
    for table in tables:
        _, before, _ = page.execute_script(STATE, table, 0)
        buttons = table.find_elements(By.CSS_SELECTOR, "thead th button")
        for column, button in enumerate(buttons):
            for direction in ("ascending", "descending", "ascending"):
                button.click()
                values, rows, said = page.execute_script(STATE, table, column)
                known = [value for value in values if value != ""]
                missing += len(values) - len(known)
                assert values == known + [""] * (len(values) - len(known)), (button.text, values)
                assert _ascends(page, known if direction == "ascending" else known[::-1]), (button.text, values)
                assert sorted(rows) == sorted(before)
                assert said == [direction if other == column else None for other in range(len(buttons))]
    assert missing, "no column without a value: the planted records no longer try that"


def test_sorting_needs_no_mouse(page: Chrome) -> None:
    """A heading that has the focus sorts at the Enter key."""
    button = page.find_element(By.CSS_SELECTOR, "table.sortable th button")
    page.execute_script("arguments[0].focus()", button)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"


def test_figures_are_described(page: Chrome) -> None:
    """Every figure is one image with its contents in words."""
    figures = page.find_elements(By.CSS_SELECTOR, "figure svg")
    assert len(figures) == len(page.find_elements(By.TAG_NAME, "figure")) > 3
    for figure in figures:
        assert figure.get_attribute("role") == "img"
        assert "mult_gauss attn_only: " in (figure.get_attribute("aria-label") or "")


REFERENCES = r"""
const found = new Set();
for (const element of document.querySelectorAll("*"))
  for (const {name, value} of element.attributes) {
    if (/(^|:)href$/.test(name) && value.startsWith("#")) found.add(value.slice(1));
    for (const [, id] of value.matchAll(/url\(["']?#([^)"']+)/g)) found.add(id);
  }
return [...found].map((id) => [id, document.querySelectorAll(`[id="${CSS.escape(id)}"]`).length]);
"""


def test_every_reference_has_one_target(page: Chrome) -> None:
    """Figures on one page do not borrow each other's clip paths and markers."""
    targets = page.execute_script(REFERENCES)
    assert len(targets) > 5
    assert [(name, count) for name, count in targets if count != 1] == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1400, 900)], ids=["narrow", "wide"])
def test_it_does_not_scroll_sideways(page: Chrome, width: int, height: int) -> None:
    """What is wider than the window scrolls inside of its own box."""
    _window(page, width, height)
    page.refresh()
    page.execute_script("document.querySelectorAll('details').forEach((details) => details.open = true)")
    inner, scroll = page.execute_script("return [window.innerWidth, document.documentElement.scrollWidth]")
    assert inner == width
    assert scroll <= width


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)`, as WCAG 2.2 defines it."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


COLOURS = """
const style = (selector) => getComputedStyle(document.querySelector(selector));
const texts = [...document.querySelectorAll("figure svg text")].map((text) => getComputedStyle(text).fill);
return [style("body").color, style("body").backgroundColor, style(".soft").color, [...new Set(texts)]];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page: Chrome, scheme: str) -> None:
    """The page follows the reader's choice, its figures too, and the contrast of text is WCAG's AAA, of asides AA."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    ink, paper, soft, figure = page.execute_script(COLOURS)
    assert (_luminance(ink) > _luminance(paper)) == (scheme == "dark")
    for colour, least in ((ink, 7), (soft, 4.5)):
        dark, light = sorted((_luminance(colour), _luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= least, (colour, paper)
    assert figure == [ink]


PANELS = """
return [...document.querySelectorAll("figure svg g[id*='axes_']")].map((panel) => [
  [...panel.querySelectorAll("text")].map((text) => text.textContent.trim()),
  [...panel.querySelectorAll("g[id*='xtick_'] text")].map((text) => {
    const box = text.getBoundingClientRect();
    const parts = [...text.querySelectorAll("tspan")].map((part) => Number(part.textContent));
    return [(box.left + box.right) / 2, parts.length === 2 ? parts[0] ** parts[1] : Number(text.textContent)];
  })]);
"""


def test_damage_grows_to_the_right(page: Chrome) -> None:
    """The axis of uni_quant runs from many quantisation levels to few, that of mult_gauss from little noise to much."""
    seen, shown = Counter[str](), set[tuple[str, float]]()
    for texts, ticks in page.execute_script(PANELS):
        (method,) = (text.split()[0] for text in texts if text.endswith(" attn_only"))
        values = [value for _, value in sorted(ticks)]
        assert len(values) >= 3, (method, texts)
        assert values == sorted(set(values), reverse=method == "uni_quant"), method
        shown |= {(method, value) for value in values}
        seen[method] += 1
    assert seen["uni_quant"] == seen["mult_gauss"] > 3
    assert {("uni_quant", level) for level in SWEEPS["uni_quant"]} <= shown
