"""Under load, with a prefix cache and 8-bit activations: the answer that the model gives alone, token for token."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

import datong

pytestmark = pytest.mark.smollm2
OTHERS = 16


def test_greedy_under_load_is_the_offline_answer_of_a_quantised_model(serve: Callable[..., Any]) -> None:
    prompts = [
        [{"role": "user", "content": f"Name {3 + i % 5} rivers. " + "Think first. " * (5 * i % 11)}]
        for i in range(OTHERS + 1)
    ]
    got: dict[int, list[str]] = {}
    with serve("smollm2").client() as client:

        def ask(i: int) -> None:
            for _ in range(2):  # the second time the prompt comes out of the prefix cache
                settings: dict[str, Any] = {"temperature": 0} if i % 4 == 0 else {"temperature": 0.9, "seed": i}
                answer = client.chat.completions.create(model=name, messages=prompts[i], max_tokens=24, **settings)
                got.setdefault(i, []).append(answer.choices[0].message.content)

        name = client.models.list().data[0].id
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(OTHERS + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    offline = datong.load("smollm2", threads=1)
    for i, prompt in enumerate(prompts):
        settings: dict[str, Any] = {"temperature": 0} if i % 4 == 0 else {"temperature": 0.9, "seed": i}
        assert got[i] == [offline.generate(prompt, max_tokens=24, **settings).text] * 2
