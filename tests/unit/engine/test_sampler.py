import math

import numpy as np
import pytest

from datong.engine.sampler import History, SamplingParams, make_rng, sample
from datong.errors import DeviceError, InvalidRequest


def row(vocab: int = 50, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab) * spread).astype(np.float32)


def draw(logits: np.ndarray, n: int = 8000, seed: int = 1, history: History | None = None, **params) -> np.ndarray:
    rng, p, h = make_rng(seed), SamplingParams(**params), history or History([])
    return np.bincount([sample(logits, p, h, rng).token for _ in range(n)], minlength=logits.size)


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """Statistic minus its mean, in standard deviations of a chi-square; outside the support nothing may be drawn."""
    assert counts[p == 0].sum() == 0
    expected = p[p > 0] * counts.sum()
    freedom = (p > 0).sum() - 1
    return float((((counts[p > 0] - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def warped(logits: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The same steps by transformers: probabilities, [vocab]."""
    torch = pytest.importorskip("torch")
    import transformers as tf

    x = torch.tensor(logits[None] / temperature)
    warpers = [tf.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [tf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [tf.MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        x = warper(None, x)
    return torch.softmax(x.double(), -1)[0].numpy()


def test_greedy_takes_the_largest_and_the_lowest_id_of_a_tie():
    assert sample(np.float32([0, 3, 3, 1]), SamplingParams(), History([]), make_rng(0)).token == 1


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.7, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_follow_the_distribution_of_transformers(params):
    logits = row(30)
    assert abs(chi_square(draw(logits, **params), warped(logits, **params))) < 4


def test_the_chi_square_check_can_fail():
    logits = row(30)
    assert chi_square(draw(logits, temperature=1.0), softmax(logits / 1.1)) > 4


def test_top_p_finds_its_head_in_a_flat_distribution_beyond_the_first_candidates():
    logits = row(5000, spread=0.1)
    counts = draw(logits, n=3000, temperature=1.0, top_p=0.5)
    order = np.argsort(-logits)
    nucleus = int(np.searchsorted(softmax(logits)[order].cumsum(), 0.5)) + 1
    assert nucleus > 2000 and counts[order[nucleus:]].sum() == 0 and (counts > 0).sum() > 1000


def test_ties_with_the_kth_stay():
    counts = draw(np.float32([1, 1, 1, 0]), n=500, temperature=1.0, top_k=2)
    assert (counts > 0).tolist() == [True, True, True, False]


@pytest.mark.parametrize("temperature", [1e-30, 1e-5])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = row(100)
    assert draw(logits, n=20, temperature=temperature)[logits.argmax()] == 20


def test_extreme_logits_do_not_overflow():
    logits = np.float32([3e38, -3e38, 3e38, -np.inf])
    assert (draw(logits, n=200, temperature=1.0) > 0).tolist() == [True, False, True, False]


def test_repetition_penalty_as_in_transformers():
    torch = pytest.importorskip("torch")
    import transformers as tf

    logits, prompt = row(), [3, 4, 4, 9]
    history = History(prompt)
    history.add(11)
    expected = tf.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, 11]]), torch.tensor(logits[None]))[0]
    counts = draw(logits, history=history, temperature=1.0, repetition_penalty=1.7)
    assert abs(chi_square(counts, softmax(expected.numpy()))) < 4


def test_presence_and_frequency_count_the_answer_only():
    logits = np.zeros(4, np.float32)
    history = History([0, 0, 0])
    for token in (1, 2, 2):
        history.add(token)
    p = softmax(np.array([0, -0.5 - 0.25, -0.5 - 0.5, 0]))
    counts = draw(logits, history=history, temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25)
    assert abs(chi_square(counts, p)) < 4


def test_logit_bias_forces_and_bans():
    logits = row()
    best = int(logits.argmax())
    assert sample(logits, SamplingParams(logit_bias={best: -math.inf}), History([]), make_rng(0)).token != best
    assert sample(logits, SamplingParams(logit_bias={7: 100.0}), History([]), make_rng(0)).token == 7


def test_the_logits_are_left_as_they_were():
    logits = row()
    before = logits.copy()
    draw(logits, n=3, temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=2.0, history=History([1, 2]), logprobs=3)
    assert (logits == before).all()


def test_a_seed_repeats_and_two_seeds_differ():
    logits, params = row(), SamplingParams(temperature=1.0)

    def tokens(seed):
        rng = make_rng(seed)
        return [sample(logits, params, History([]), rng).token for _ in range(30)]

    assert tokens(5) == tokens(5) != tokens(6)
    assert tokens(None) != tokens(None)


def test_logprobs_are_the_models_own_best_first():
    logits = row()
    out = sample(
        logits, SamplingParams(temperature=0.3, seed=1, logprobs=3, logit_bias={5: 9.0}), History([]), make_rng(1)
    )
    expected = np.log(softmax(logits))
    assert out.logprob == pytest.approx(expected[out.token], abs=1e-6)
    assert [i for i, _ in out.top] == np.argsort(-logits)[:3].tolist()
    assert [v for _, v in out.top] == pytest.approx(expected[np.argsort(-logits)[:3]].tolist(), abs=1e-6)
    assert sample(logits, SamplingParams(logprobs=0), History([]), make_rng(1)).top == ()
    assert len(sample(logits, SamplingParams(logprobs=999), History([]), make_rng(1)).top) == 50


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_are_an_error_and_not_a_token(bad, temperature):
    with pytest.raises(DeviceError, match=r"\[sample\] logits should be finite"):
        sample(np.float32(bad), SamplingParams(temperature=temperature), History([]), make_rng(0))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1}, {"temperature": math.nan}, {"temperature": "hot"}, {"top_k": -1}, {"top_k": 1.5},
        {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0}, {"seed": -1}, {"seed": True},
        {"logprobs": -1}, {"logprobs": 10**6}, {"presence_penalty": math.inf}, {"logit_bias": {1: math.nan}},
        {"logit_bias": {-1: 1.0}},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(params):
    with pytest.raises(InvalidRequest, match=rf"\[sample\] {next(iter(params))}.* should be "):
        SamplingParams(**params)


def test_a_bias_beyond_the_vocabulary_is_refused():
    with pytest.raises(InvalidRequest, match="logit_bias token should be below 50, got 50"):
        sample(row(), SamplingParams(logit_bias={50: 1.0}), History([]), make_rng(0))
