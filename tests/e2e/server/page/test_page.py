"""The page in Chromium: what a person does with it, and that hostile answers do nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"  # https://www.w3.org/TR/webdriver/#keyboard-actions
GREEDY = {"temperature": 0, "max_tokens": 24}
LONG = {"temperature": 0.8, "seed": 1, "max_tokens": 1500}
QUESTION = "Name three rivers of China."
HOSTILE = """Hello <img src=x onerror="window.hacked=1"> <b onclick="window.hacked=2">bold</b>

<script>window.hacked=3</script>

<iframe srcdoc="<script>parent.hacked=4</script>"></iframe> <svg onload="window.hacked=5"></svg>

[a](javascript:window.hacked=6) [b](JaVaScRiPt&colon;window.hacked=7) [c](data:text/html,<script>8</script>)
![x](https://example.org/pixel.png) ![y](x"onerror="window.hacked=9)

```html"><img src=x onerror="window.hacked=10">
<img src=x onerror="window.hacked=11">
```

| <img src=x onerror="window.hacked=12"> | `<img src=x onerror="window.hacked=13">` |
|---|---|
| &lt;img src=x onerror="window.hacked=14"&gt; | <style>*{display:none}</style> |
"""


def chat(*messages: dict[str, Any], title: str = "kept") -> dict[str, Any]:
    return {"id": title, "title": title, "changed": 1, "messages": list(messages)}


def test_an_answer_streams_and_is_the_servers(page: Any, site: Any) -> None:
    page.open(site.url, sampling={**GREEDY, "system": "Be brief."})
    page.send(QUESTION)
    seen = set()
    while page.busy:
        seen.add(page.text(".answer > .prose"))
    found = page.answer()
    assert len(seen) > 3, "it should come in pieces"
    with site.client() as client:
        name = client.models.list().data[0].id
        same = client.chat.completions.create(
            model=name,
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
            **GREEDY,
        )
    assert found["content"] == same.choices[0].message.content
    assert found["stats"]["tokens"] == same.usage.completion_tokens
    assert name in page.text(".figures") and "cpu · measured" in page.text(".figures")
    assert "tokens/s" in page.text(".figures") and "first token after" in page.text(".figures")
    assert page.text("#device") == "cpu · measured"
    assert page.text("#status") == "The answer is complete."


def test_escape_stops_and_the_server_stops_too(page: Any, site: Any, until_true: Callable[..., None]) -> None:
    page.open(site.url, sampling=LONG)
    page.send("Tell me a very long story.")
    page.until(lambda: len(page.text(".answer > .prose")) > 20)
    assert page.one("#stop").is_displayed() and not page.one("#send").is_displayed()
    page.press(ESCAPE)
    found = page.answer()
    assert found["end"] == "stopped" and found["content"] and "Stopped" in page.text(".figures")
    until_true(lambda: site.metric("datong_requests_running") == 0)
    assert page.one("#send").is_displayed()


def test_a_reload_keeps_history_even_in_the_middle(page: Any, site: Any) -> None:
    page.open(site.url, sampling=GREEDY)
    page.send(QUESTION)
    first = page.answer()["content"]
    page.one("#new").click()
    assert page.one("#empty").is_displayed()
    page.script("localStorage.setItem('datong.sampling', arguments[0])", '{"max_tokens": 1500, "seed": 1}')
    page.send("Tell me a very long story.")
    page.until(lambda: any(len(one["content"]) > 20 for one in page.chats()[0]["messages"][1:]))
    page.load()
    assert len(page.all("#list .open")) == 2 and page.text(".bubble") == "Tell me a very long story."
    assert len(page.text(".answer > .prose")) > 10
    page.all("#list .open")[1].click()
    assert page.chats()[1]["messages"][1]["content"] == first and page.text(".bubble") == QUESTION


def test_deleted_and_undone(page: Any, site: Any) -> None:
    page.open(site.url, **{"chat.kept": chat({"role": "user", "content": "hi"})})
    page.script("document.querySelector('#list .drop').click()")
    assert page.all("#list .open") == [] and page.chats() == []
    page.one("#notice button").click()
    assert page.text("#list .open") == "kept" and page.text(".bubble") == "hi"


def test_again_and_edit_replace_what_followed(page: Any, site: Any) -> None:
    page.open(site.url, sampling=GREEDY)
    page.send(QUESTION)
    first = page.answer()["content"]
    page.all(".answer .foot button")[1].click()
    page.until(lambda: page.busy or page.all(".answer"))
    assert page.answer()["content"] == first and len(page.all("article")) == 2
    page.script("[...document.querySelectorAll('.question .foot button')].pop().click()")
    page.press(" And one of France.", ENTER)
    page.until(lambda: "France" in page.text(".bubble"))
    page.answer()
    said = page.chats()[0]["messages"]
    assert [one["role"] for one in said] == ["user", "assistant"] and said[0]["content"].endswith("France.")


def test_the_language_is_switched_and_kept(page: Any, site: Any) -> None:
    page.open(site.url, language="en", **{"chat.kept": chat({"role": "user", "content": "hi"})})
    assert page.text("#new") == "New chat"
    page.one("#language").send_keys("中")
    page.script("const s = document.querySelector('#language'); s.value = 'zh'; s.dispatchEvent(new Event('change'))")
    page.until(lambda: page.text("#new") == "新对话")
    page.load()
    assert page.script("return document.documentElement.lang") == "zh-CN"
    assert page.one("#send").get_attribute("aria-label") == "发送" and page.text("#device") == "cpu · 实测"
    assert page.one("#input").get_attribute("placeholder") == "输入消息" and page.text(".bubble") == "hi"


def test_hostile_answers_do_nothing(page: Any, site: Any) -> None:
    page.open(
        site.url,
        **{
            "chat.kept": chat(
                {"role": "user", "content": HOSTILE},
                {"role": "assistant", "content": HOSTILE, "reasoning": HOSTILE, "model": HOSTILE, "error": HOSTILE},
                title=HOSTILE,
            )
        },
    )
    page.script(
        "document.querySelectorAll('#log *').forEach((one) => one.closest('a, button, summary') || one.click())"
    )
    assert page.script("return window.hacked ?? null") is None
    allowed = "article div p span a figure figcaption button pre code table thead tbody tr th td details summary br"
    found = set(page.script("return [...document.querySelectorAll('#log *')].map((one) => one.localName)"))
    assert found <= set(allowed.split())
    links = page.script("return [...document.querySelectorAll('#log a')].map((one) => one.protocol)")
    assert links and set(links) <= {"http:", "https:"}
    names = page.script("return [...document.querySelectorAll('#log *')].flatMap((one) => one.getAttributeNames())")
    assert not [name for name in names if name.startswith("on") or name in ("style", "srcdoc", "src")]
    assert "onerror=" in page.text(".answer > .prose"), "it is shown as the text it is"
    assert page.script("return document.querySelector('.thoughts').open") is False


def test_the_policy_holds_where_the_page_would_not(page: Any, driver: Any, site: Any) -> None:
    page.open(site.url)
    tried = """const done = arguments[0];
        try { document.body.innerHTML = '<p>x</p>'; done('html'); } catch (error) { done(error.name); }"""
    assert driver.execute_async_script(tried) == "TypeError"
    script = """const done = arguments[0]; const one = document.createElement('img');
        one.onerror = () => done('refused'); one.onload = () => done('loaded');
        one.src = 'http://127.0.0.1:9/x.png'; document.body.append(one);"""
    assert driver.execute_async_script(script) == "refused"
    log = " ".join(line["message"] for line in driver.get_log("browser"))
    assert "TrustedHTML" in log and "img-src" in log


def test_markdown(page: Any, site: Any) -> None:
    text = (
        "# Title\n\nSome *em*, **strong**, `a<b`, AT&amp;T &#x4e2d; and [link](https://example.org/?a=1&b=2).\n\n"
        "1. one\n   - [x] done\n2. two\n\n> quote\n\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\n```python\nprint('<hi>')\n```\n"
    )
    page.open(site.url, **{"chat.kept": chat({"role": "user", "content": "q"}, {"role": "assistant", "content": text})})
    prose = ".answer > .prose "
    assert page.text(f"{prose}h3") == "Title" and page.text(f"{prose}em") == "em"
    assert page.text(f"{prose}p > code") == "a<b" and "AT&T 中 and" in page.text(".answer > .prose > p")
    assert page.one(f"{prose}a").get_attribute("href") == "https://example.org/?a=1&b=2"
    assert page.one(f"{prose}a").get_attribute("rel") == "noopener noreferrer"
    assert page.one(f"{prose}li input").is_selected() and page.text(f"{prose}td.to-right") == "2"
    assert page.text(f"{prose}pre code") == "print('<hi>')" and page.text(f"{prose}figcaption span") == "python"


@pytest.mark.parametrize(
    "state",
    [
        "true",
        "navigator.clipboard.writeText = () => Promise.reject(new DOMException('no', 'NotAllowedError'))",
        "Object.defineProperty(navigator, 'clipboard', { value: undefined })",  # http to another host
    ],
    ids=["granted", "refused", "absent"],
)
def test_copy_with_and_without_permission(page: Any, site: Any, state: str) -> None:
    text = f"{state} <hi>"
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"```\n{text}\n```"}]
    page.open(site.url, **{"chat.kept": chat(*said)})
    names = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": names})
    page.script(f"window.clip = navigator.clipboard; {state}")
    page.one(".copy").click()
    page.until(lambda: page.text(".copy") == "Copied")
    read = "const done = arguments[0]; window.clip.readText().then(done, (error) => done(String(error)))"
    assert page.driver.execute_async_script(read) == text


def test_a_mistake_is_shown_in_the_servers_words(page: Any, site: Any) -> None:
    page.open(site.url, sampling={"temperature": -3})
    page.send("hi")
    page.until(lambda: not page.busy)
    body = {
        "model": page.one("#model").get_attribute("value"),
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": -3,
    }
    sentence = site.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert page.text(".answer .error") == sentence and "temperature" in sentence


def test_an_api_key_is_asked_for_and_kept_for_the_tab(
    page: Any, serve: Callable[..., Any], package_template: Path
) -> None:
    live = serve(package_template, env={"DATONG_API_KEYS": "sk-of-the-page"})
    page.open(live.url)
    assert "An API key is needed" in page.text("#notice")
    page.one("#notice button").click()
    page.press("sk-of-the-page", ESCAPE)
    page.until(lambda: page.text("#device") == "cpu · measured")
    page.send("hi")
    assert page.answer()["content"] and "error" not in page.answer()
    assert page.script("return JSON.stringify(localStorage).includes('sk-of')") is False
    assert page.script("return sessionStorage.getItem('datong.key')") == "sk-of-the-page"


def test_the_other_model_loads_when_asked(page: Any, site: Any) -> None:
    page.open(site.url, model="tiny", sampling={"max_tokens": 5})
    assert page.one("#model").get_attribute("value") == "tiny"
    page.send("hi")
    assert page.answer()["model"] == "tiny"
    page.until(lambda: page.text("#device") == "cpu · measured")


def test_one_model_on_two_devices(page: Any, serve: Callable[..., Any], package_template: Path) -> None:
    live = serve(package_template, f"{package_template}@reference")
    page.open(live.url, sampling={"max_tokens": 5})
    assert [option.text for option in page.all("#model option")] == ["tiny"]
    assert [option.text for option in page.all("#devices option")] == ["cpu", "reference"]
    assert page.one("#devices").is_displayed() and page.text("#device") == "cpu · measured"
    page.send("hi")
    assert page.answer()["device"] == "cpu"
    page.one("#devices").send_keys("r")  # by keyboard: the option that begins so
    page.until(lambda: "reference" in page.one("#devices").get_attribute("value"))
    page.one("#input").click()
    page.send("again")
    assert page.answer()["model"] == "tiny@reference"
    page.until(lambda: page.text("#device") == "reference · measured")
    page.load()
    assert page.one("#devices").get_attribute("value") == "tiny@reference"


def test_one_device_needs_no_picker(page: Any, site: Any) -> None:
    page.open(site.url)
    assert not page.one("#devices").is_displayed()


def test_by_keyboard_only(page: Any, site: Any) -> None:
    page.open(site.url, sampling=GREEDY)
    focused = "return document.activeElement.id || document.activeElement.className"
    page.until(lambda: page.script(focused) == "input")
    page.press("one")
    page.press(ENTER, shift=True)
    page.press("two", ENTER)
    page.until(lambda: page.all(".answer"))
    assert page.text(".bubble") == "one\ntwo"
    page.answer()
    page.script("document.activeElement.blur()")
    order = []
    for _ in range(40):
        page.press(TAB)
        order.append(page.script(focused))
        if order[-1] == "input":
            break
    wanted = ["skip", "new", "open", "icon drop", "language", "theme", "model", "open-settings", "input"]
    assert [one for one in order if one in wanted] == wanted
    for one in page.all("button, select, input, textarea"):
        assert not one.is_displayed() or one.accessible_name, one.get_attribute("outerHTML")


def test_on_a_phone(page: Any, site: Any) -> None:
    table = "| " + " | ".join("wide column" for _ in range(12)) + " |\n" + "|---" * 12 + "|\n"
    text = f"{table}\n```\n{'x' * 400}\n```\n\n{'y' * 400}"
    size = {"width": 390, "height": 760, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.open(
            site.url,
            **{"chat.kept": chat({"role": "user", "content": "z" * 300}, {"role": "assistant", "content": text})},
        )
        assert page.script("return document.documentElement.scrollWidth") == 390
        assert page.script("const s = document.querySelector('#scroll'); return s.scrollWidth <= s.clientWidth")
        assert not page.one("#side").is_displayed()
        page.one("#menu").click()
        page.until(page.one("#side").is_displayed)
        assert page.one("#menu").get_attribute("aria-expanded") == "true"
        page.press(ESCAPE)
        page.until(lambda: not page.one("#side").is_displayed())
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(
    ("system", "chosen", "dark"), [("dark", "auto", True), ("dark", "light", False), ("light", "dark", True)]
)
def test_light_and_dark(page: Any, site: Any, system: str, chosen: str, dark: bool) -> None:
    wish = {"features": [{"name": "prefers-color-scheme", "value": system}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
    try:
        page.open(site.url, theme=chosen)
        colour = page.script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, colour[4:-1].split(","))) < 3 * 128) == dark
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_less_motion_where_that_is_wished(page: Any, site: Any) -> None:
    wish = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
    try:
        page.open(site.url)
        style = "return getComputedStyle(document.querySelector('nav')).transitionDuration"
        assert page.script(style) in ("0s", "none")
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_comes_from_elsewhere(page: Any, site: Any) -> None:
    page.open(site.url)
    names = page.script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert len(names) > 10 and all(name.startswith(f"{site.url}/") for name in names)
