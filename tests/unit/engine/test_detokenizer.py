import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datong.engine.detokenizer import Detokenizer, StopStrings
from datong.engine.tokenizer import Tokenizer
from datong.errors import InvalidRequest
from datong.spec.dialogue import Dialogue, Reasoning

TEXTS = [
    "hello world",
    " two  spaces ",
    "你好，世界 🎉",
    "👩‍👩‍👧 family\nnew line",
    "naïve café ￿",
    "",
    "a",
    "🏳️‍🌈🏳️‍🌈",
    "日本語のテキスト",
]


def stream(tokenizer: Tokenizer, ids: list[int], **options) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_stream_is_the_text(any_tokenizer, text):
    ids = any_tokenizer.encode(text, add_special=False)
    assert "".join(stream(any_tokenizer, ids)) == any_tokenizer.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_ends_in_half_a_character(exact_tokenizers, text):
    for tokenizer in exact_tokenizers.values():
        assert "�" not in "".join(stream(tokenizer, tokenizer.encode(text, add_special=False)))
    bytewise = exact_tokenizers["byte_level"]
    ids = [i for c in text for i in bytewise.encode(c, add_special=False)]
    assert "".join(stream(bytewise, ids)) == text


def test_an_emoji_comes_with_its_last_byte(exact_tokenizers):
    tokenizer = exact_tokenizers["byte_level"]
    assert stream(tokenizer, tokenizer.encode("🎉")) == ["", "", "", "🎉", ""]


def test_bytes_that_are_no_text_come_at_the_end_as_one_replacement(exact_tokenizers):
    tokenizer = exact_tokenizers["byte_level"]
    assert stream(tokenizer, tokenizer.encode("🎉")[:3]) == ["", "", "", "�"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), skip=st.booleans())
def test_random_ids_equal_the_librarys_decode(exact_tokenizers, data, skip):
    tokenizer = exact_tokenizers["byte_level"]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=20))
    assert "".join(stream(tokenizer, ids, skip_special=skip)) == tokenizer.decode(ids, skip_special=skip)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="▁"), max_size=12), max_size=4))
def test_random_texts_with_special_tokens_between_equal_the_librarys_decode(exact_tokenizers, texts):
    for tokenizer in exact_tokenizers.values():
        special = tokenizer.inner.token_to_id("<s>")
        ids = [i for text in texts for i in [*tokenizer.encode(text, add_special=False), special]]
        for skip in (True, False):
            assert "".join(stream(tokenizer, ids, skip_special=skip)) == tokenizer.decode(ids, skip_special=skip)


def test_a_continued_text_keeps_its_space(exact_tokenizers):
    tokenizer = exact_tokenizers["sentence_piece"]
    ids = tokenizer.encode("fox", add_special=False)
    assert "".join(stream(tokenizer, ids)) == "fox"
    assert "".join(stream(tokenizer, ids, continues=True)) == " fox"


# ---- stop strings ----------------------------------------------------------------------------------------------------


def cut(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    matcher = StopStrings(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, matcher.finish()], matcher.found


def test_a_stop_string_over_several_pieces_is_never_shown():
    assert cut(["ab", "c#", "#", "#d", "e"], ["###"]) == (["ab", "c", "", "", "", ""], "###")


def test_what_did_not_become_a_stop_string_comes_later():
    assert cut(["a#", "#b", "#"], ["###"]) == (["a", "##b", "", "#"], None)


def test_the_earliest_of_several_counts():
    assert cut(["one two three"], ["three", "two"]) == (["one ", ""], "two")


def test_overlapping_beginnings():
    shown, found = cut(list("aabaabaaab"), ["aabaaa"])
    assert ("".join(shown), found) == ("aab", "aabaaa")


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_any_cut_of_the_text_gives_the_text_before_the_first_stop(pieces, stops):
    text = "".join(pieces)
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    shown, found = cut(pieces, stops)
    assert (found is None) == (first is None)
    if first is None:
        assert "".join(shown) == text
    else:
        # The first stop that is complete ends the answer, as it would for somebody who reads along.
        reached = next(n for n in range(len(text) + 1) if any(s in text[:n] for s in stops))
        assert min(ends) == reached and not any(stop in "".join(shown) for stop in stops)
        assert text.startswith("".join(shown))


@pytest.mark.parametrize("stops", [[""], ["x" * 2000], ["a"] * 100, [5]])
def test_bad_stop_strings_are_refused(stops):
    with pytest.raises(InvalidRequest, match=r"\[stop\] "):
        StopStrings(stops)


def test_one_string_is_one_stop():
    matcher = StopStrings("ab")
    assert matcher.push("xaby") == "x" and matcher.found == "ab"


def test_kept_special_tokens_are_shown(exact_tokenizers):
    tokenizer = exact_tokenizers["byte_level"]
    special = next(i for i, t in tokenizer.inner.get_added_tokens_decoder().items() if t.special)
    text = tokenizer.inner.id_to_token(special)
    ids = [special, *tokenizer.encode("a", add_special=False), special]
    assert "".join(stream(tokenizer, ids)) == "a"
    assert "".join(stream(tokenizer, ids, keep=frozenset({special}))) == f"{text}a{text}"
    dialogue = Dialogue("x", "s", Reasoning(text, "end"))
    assert tokenizer.marks(dialogue) == {special}
