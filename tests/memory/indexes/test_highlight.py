"""What is marked in found texts."""

from services.memory.analysis import Analyser
from services.memory.chunks import KeywordQuery, Phrase
from services.memory.highlight import highlight, spans

ENGLISH = Analyser("en")


def marked(text: str, query: KeywordQuery, *, field: str = "content", language: str = "en") -> list[str]:
    return [text[start:stop] for start, stop in spans(text, query, analyser=Analyser(language), field=field)]


def test_words_are_marked_in_all_their_forms() -> None:
    text = "Layers of the Boundary-layer: a layered café."
    assert marked(text, KeywordQuery(text="the boundary LAYER of a cafe")) == [
        "Layers",
        "Boundary",
        "layer",
        "layered",
        "café",
    ]


def test_phrases_are_marked_as_a_whole_and_only_in_their_field() -> None:
    text = "heat transfer, heat and mass transfer; transfer of heat"
    query = KeywordQuery(phrases=[Phrase(text="heat transfer", slop=2)])
    assert marked(text, query) == ["heat transfer", "heat and mass transfer"]
    assert marked(text, KeywordQuery(phrases=[Phrase(text="heat transfer", field="title")])) == []


def test_prefixes_and_scripts_without_spaces_are_marked() -> None:
    assert marked("hyper Hypersonic supersonic", KeywordQuery(prefixes=["hyper"])) == ["hyper", "Hypersonic"]
    assert marked("我喜欢黑猫。猫!", KeywordQuery(text="猫"), language="zh") == ["猫", "猫"]


def test_stop_words_are_marked_only_when_there_is_nothing_else() -> None:
    assert marked("to be or not to be", KeywordQuery(text="to be")) == ["to", "be", "to", "be"]
    assert marked("to be or not to bee", KeywordQuery(text="to the bee")) == ["bee"]


def test_the_excerpt_is_where_most_matches_are() -> None:
    text = "dog " + "filler " * 50 + "a dog, a cat and one more dog " + "filler " * 50
    found = highlight(text, KeywordQuery(text="dog cat"), analyser=ENGLISH, fragment_characters=60)
    assert found is not None
    assert len(found.excerpt) <= 60
    assert text[found.excerpt_start :].startswith(found.excerpt)
    assert [found.excerpt[span.start : span.end] for span in found.spans] == ["dog", "cat", "dog"]
    assert found.excerpt.strip().split()[0] in {"filler", "a"}


def test_marks_are_bounded_and_nothing_found_is_none() -> None:
    found = highlight("dog " * 30, KeywordQuery(text="dog"), analyser=ENGLISH)
    assert found is not None
    assert len(found.spans) == 10
    assert len(highlight("dog " * 30, KeywordQuery(text="dog"), analyser=ENGLISH, max_spans=3).spans) == 3  # type: ignore[union-attr] # it is found
    assert highlight("dog", KeywordQuery(text="cat"), analyser=ENGLISH) is None
    assert highlight("", KeywordQuery(text="cat"), analyser=ENGLISH, fragment_characters=5) is None


def test_an_excerpt_is_never_shorter_than_its_match() -> None:
    phrase = KeywordQuery(phrases=[Phrase(text="boundary layer")])
    found = highlight("the boundary layer", phrase, analyser=ENGLISH, fragment_characters=4)
    assert found is not None
    assert found.excerpt == "boundary layer"
