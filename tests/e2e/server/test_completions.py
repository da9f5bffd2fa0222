"""`/v1/completions`, `/tokenize` and `/detokenize` through the official client, against the model itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest

PROMPT = "The quick brown fox"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_greedy_is_the_offline_answer(client: Any, offline: Any) -> None:
    want = offline.generate(PROMPT, max_tokens=20)
    got = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0)
    assert got.choices[0].text == want.text and want.text
    assert got.choices[0].finish_reason == want.finish_reason == "length"
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (want.prompt_tokens, 20)
    assert got.object == "text_completion" and got.model == "tiny"


def test_a_stream_is_the_same_text_and_usage_comes_last(client: Any) -> None:
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0)
    pieces = list(
        client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=20,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "length"
    assert pieces[-1].choices == [] and pieces[-1].usage.completion_tokens == 20
    assert all(p.usage is None for p in pieces[:-1])


def test_prompts_as_ids_and_as_lists(client: Any, offline: Any) -> None:
    ids = offline.encode(PROMPT)
    single = client.completions.create(model="tiny", prompt=ids, max_tokens=8, temperature=0)
    several = client.completions.create(model="tiny", prompt=[PROMPT, "Other"], max_tokens=8, temperature=0)
    lists = client.completions.create(model="tiny", prompt=[ids, offline.encode("Other")], max_tokens=8, temperature=0)
    want = [r.text for r in offline.generate([PROMPT, "Other"], max_tokens=8)]
    assert single.choices[0].text == want[0]
    assert [c.text for c in several.choices] == [c.text for c in lists.choices] == want
    assert [c.index for c in several.choices] == [0, 1]
    assert several.usage.prompt_tokens == len(ids) + len(offline.encode("Other"))


def test_seeds_choices_and_best_of(client: Any, offline: Any) -> None:
    ask: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.5, "seed": 7}
    several = client.completions.create(n=3, **ask)
    texts = [c.text for c in several.choices]
    want = [offline.generate(PROMPT, max_tokens=12, temperature=1.5, seed=7 + i).text for i in range(3)]
    assert texts == want and len(set(texts)) == 3
    likely = [
        np.mean(
            [
                s.logprob
                for s in offline.generate(PROMPT, max_tokens=12, temperature=1.5, seed=7 + i, logprobs=0).logprobs
            ]
        )
        for i in range(3)
    ]
    best = client.completions.create(best_of=3, **ask)
    assert [c.text for c in best.choices] == [want[int(np.argmax(likely))]]
    assert best.usage.completion_tokens == several.usage.completion_tokens


def test_echo_with_logprobs_scores_the_prompt(client: Any, offline: Any) -> None:
    """What lm-eval's loglikelihood asks for."""
    ids = offline.encode(PROMPT)
    expected = log_softmax(offline.logits(ids))
    got = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, temperature=0, logprobs=3, echo=True)
    choice = got.choices[0]
    assert choice.text.startswith(PROMPT) and len(choice.logprobs.tokens) == len(ids) + 1
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    wanted = [expected[i, token] for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(choice.logprobs.token_logprobs[1:-1], wanted, atol=1e-5)
    assert max(choice.logprobs.top_logprobs[-1].values()) == pytest.approx(expected[-1].max(), abs=1e-5)
    assert all(len(top) >= 3 for top in choice.logprobs.top_logprobs[1:])
    assert choice.logprobs.text_offset[:3] == [0, 1, 2]
    alone = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, logprobs=1, echo=True)
    assert alone.choices[0].text == PROMPT
    np.testing.assert_allclose(alone.choices[0].logprobs.token_logprobs[1:], wanted, atol=1e-5)
    streamed = list(
        client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=2, temperature=0, logprobs=1, echo=True, stream=True
        )
    )
    assert streamed[0].choices[0].text.startswith(PROMPT)
    assert sum(len(p.choices[0].logprobs.tokens) for p in streamed if p.choices[0].logprobs) == len(ids) + 2


def test_sampling_settings_arrive(client: Any, offline: Any) -> None:
    settings: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "temperature": 0.9, "top_p": 0.8}
    beyond = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2}
    got = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=16, seed=3, logit_bias={"40": 4}, **settings, extra_body=beyond
    )
    want = offline.generate(PROMPT, max_tokens=16, seed=3, logit_bias={40: 4}, **settings, **beyond)
    assert got.choices[0].text == want.text
    assert want.text != offline.generate(PROMPT, max_tokens=16, seed=3, temperature=0.9).text


def test_stop_strings_end_and_are_not_shown(client: Any, offline: Any) -> None:
    text = offline.generate(PROMPT, max_tokens=20).text
    stop = text[5:7]
    got = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0, stop=[stop])
    assert got.choices[0].text == text[: text.index(stop)] and got.choices[0].finish_reason == "stop"


def test_tokenize_and_back(live: Any, offline: Any) -> None:
    ids = offline.encode(PROMPT)
    got = live.post("/tokenize", json={"prompt": PROMPT, "return_token_strs": True}).json()
    assert got["tokens"] == ids and got["count"] == len(ids) and "".join(got["token_strs"]) == PROMPT
    assert live.post("/detokenize", json={"tokens": ids}).json() == {"prompt": PROMPT}
    messages = [{"role": "user", "content": "Hi"}]
    chat = live.post("/tokenize", json={"messages": messages}).json()
    assert chat["tokens"] == offline.encode(messages)


@pytest.mark.parametrize(
    ("ask", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "n": 99}, "n"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias"),
    ],
)
def test_what_is_out_of_range_is_named(client: Any, ask: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", **ask})
    assert caught.value.param == param and caught.value.type == "invalid_request_error"
