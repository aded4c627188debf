# ruff: noqa: RUF001 - awkward letters are the point
import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, pre_tokenizers

from services.llama.checkpoint.gguf_tokenizer import tokenizer_json
from services.llama.errors import TokenizerError
from services.llama.tokenizer import BYTE_OF_LETTER, IncrementalDecoder, JsonTokenizer, TiktokenTokenizer, Tokenizer

SPECIALS = ["<|im_start|>", "<|im_end|>"]
PIECES = [
    # Llama 3.1's eight languages
    "The quick brown fox jumps over the lazy dog; it's 3:45pm, and we'LL see.",
    "Größenänderungen an Straßen überfordern fünf Jäger – „wirklich“, fragte sie?",
    "L'été dernier, où étais-tu ? Ça coûte 1 234,56 € chez l'opticien.",
    "Perché no? È già l'una, e la città è lì: più bella che mai!",
    "Não há coração que aguente tanta emoção: às vezes, é só saudade.",
    "हिन्दी में यह एक वाक्य है, जिसमें १२३ और क्षत्रिय शब्द हैं।",
    "¿Dónde está el niño? ¡Mañana será otro día, señor Núñez!",
    "ภาษาไทยไม่มีการเว้นวรรคระหว่างคำ แต่มี ๑๒๓ และวรรณยุกต์",
    # code
    "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # done\n\n\n",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; }\r\n",
    '{"a": [1, 2.5e-10, null], "b": "\\u00e9"}',
    "SELECT * FROM t WHERE a<>'x' -- 100%\n",
    # emoji and other awkward letters
    "👍🏽👩‍👩‍👧‍👦🇫🇷❤️", "\u200b\u00a0\u3000\ufeff", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽ ꧁꧂", "a\u0301\u0323 Ⅻ ½ ²", "中文，日本語、한국어",
    # blanks and digits
    " ", "\n", "  \n \t ", "\x00\x01", "1234567890123", "'S 'Re 'VE",
    # look-alikes of special tokens
    "<|eot_id|>", "<|begin_of_text|>", "<|python_tag|>", "<|start_header_id|>user<|end_header_id|>", "<|im_end|>",
    "<|reserved_special_token_5|>", "<|eot_id", "|>", "<|image|>",
]  # fmt: skip


def _texts(count: int) -> list[str]:
    """Distinct random joins of whole and cut pieces, the same every time."""
    choose = random.Random(11)
    texts: dict[str, None] = {}
    while len(texts) < count:
        parts = [choose.choice(PIECES) for _ in range(choose.randint(1, 4))]
        cut = [part[choose.randrange(len(part)) :] if choose.random() < 0.5 else part for part in parts]
        texts[choose.choice(["", " ", "\n"]).join(cut)] = None
    return list(texts)


@pytest.mark.reference
def test_llama_3_tokenizer_equals_the_reference_on_6000_texts(llama3_tokenizer: TiktokenTokenizer) -> None:
    reference_module = pytest.importorskip("llama_models.llama3.tokenizer")
    reference = reference_module.Tokenizer.get_instance()
    texts = _texts(6000)
    for text in texts:
        ids = llama3_tokenizer.encode(text)
        assert ids == reference.encode(text, bos=False, eos=False)
        assert llama3_tokenizer.decode(ids) == text
        assert llama3_tokenizer.encode(text, special=True) == reference.encode(
            text, bos=False, eos=False, allowed_special="all"
        )


@pytest.mark.reference
def test_llama_3_special_tokens_equal_the_reference(llama3_tokenizer: TiktokenTokenizer) -> None:
    reference = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    assert dict(llama3_tokenizer.special_tokens) == reference.special_tokens
    assert llama3_tokenizer.vocab_size == reference.n_words == 128_256
    assert llama3_tokenizer.bos_id == reference.bos_id
    assert llama3_tokenizer.eos_ids == set(reference.stop_tokens)


@pytest.mark.reference
@pytest.mark.parametrize(
    "text",
    [
        "a" * 25_000,
        "a" * 25_001 + " b",
        " " * 60_000 + "x",
        "ab\x1c\x85" * 30,
        "word " * 90_000,
        "é" * 25_000 + "\n" * 25_001,
    ],
    ids=["at the limit", "past it", "blanks", "rare blanks", "past 400,000", "both kinds"],
)
def test_very_long_runs_are_cut_where_the_reference_cuts(llama3_tokenizer: TiktokenTokenizer, text: str) -> None:
    reference = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    assert llama3_tokenizer.encode(text) == reference.encode(text, bos=False, eos=False)


def _gguf_metadata(ranks: dict[bytes, int], pre: str, *, specials_first: bool = False) -> dict[str, Any]:
    """The tokenizer of a GGUF file with the same words as a tiktoken file, merges worked out from the ranks."""
    letter_of_byte = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
            best, i = min(pairs)
            if best >= rank:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(" ".join("".join(letter_of_byte[byte] for byte in part) for part in parts))
    words = ["".join(letter_of_byte[byte] for byte in token) for token in sorted(ranks, key=lambda t: ranks[t])]
    tokens = SPECIALS + words if specials_first else words + SPECIALS
    types = [3 if token in SPECIALS else 1 for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
    }  # fmt: skip


def _first_ranks(path: Path, count: int) -> dict[bytes, int]:
    lines = path.read_text().splitlines()[:count]
    return {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}


def _written(folder: Path, spec: dict[str, Any]) -> JsonTokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return JsonTokenizer(path)


@pytest.fixture
def small_llama3(llama3_tokenizer_file: Path, tmp_path: Path) -> tuple[TiktokenTokenizer, JsonTokenizer]:
    """Llama 3's first 3,000 ranks, as a tiktoken file and as a tokenizer out of a GGUF file."""
    ranks = _first_ranks(llama3_tokenizer_file, 3000)
    path = tmp_path / "tokenizer.model"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return TiktokenTokenizer(path), _written(tmp_path, tokenizer_json(_gguf_metadata(ranks, "llama-bpe"), source="x"))


def test_llama_bpe_of_a_gguf_file_equals_tiktoken(small_llama3: tuple[TiktokenTokenizer, JsonTokenizer]) -> None:
    tiktoken, gguf = small_llama3
    for text in _texts(600):
        ids = gguf.encode(text)
        assert ids == tiktoken.encode(text)
        assert gguf.decode(ids) == text
        assert b"".join(map(gguf.token_bytes, ids)) == text.encode()


def test_written_special_tokens_are_text_unless_the_caller_says_so(
    small_llama3: tuple[TiktokenTokenizer, JsonTokenizer],
) -> None:
    for tokenizer, name in zip(small_llama3, ("<|eot_id|>", "<|im_end|>"), strict=True):
        plain = tokenizer.encode(f"a{name}b")
        assert not any(map(tokenizer.is_special, plain))
        assert tokenizer.decode(plain) == f"a{name}b"
        end = tokenizer.special_id(name)
        assert tokenizer.encode(f"a{name}b", special=True) == [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
        assert tokenizer.token_bytes(end) == b""
        assert end in tokenizer.eos_ids


def test_smollm2_tokenizer_splits_every_digit_and_knows_its_end(smollm2: Path) -> None:
    tokenizer = JsonTokenizer(smollm2 / "tokenizer.json")
    assert len(tokenizer.encode("123456")) == 6
    assert (tokenizer.vocab_size, tokenizer.bos_id, 2 in tokenizer.eos_ids) == (49_152, None, True)
    for text in _texts(500):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert not any(map(tokenizer.is_special, tokenizer.encode(text)))


def test_special_token_that_swallows_blanks_does_so(tmp_path: Path) -> None:
    library = LibraryTokenizer(models.BPE(vocab=dict(BYTE_OF_LETTER), merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spec = json.loads(library.to_str())
    spec["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    entry = {"id": 256, "content": "<|end|>", "special": True, "single_word": False, "normalized": False}
    spec["added_tokens"] = [entry | {"lstrip": False, "rstrip": True}]
    tokenizer = _written(tmp_path, spec)
    library = LibraryTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "a <|end|> \n b"
    assert tokenizer.encode(text, special=True) == library.encode(text).ids == [97, 32, 256, 98]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.pre": "qwen2"}, "qwen2"),
        ({"tokenizer.ggml.model": "llama"}, "'llama'"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.merges": None}, "merges"),
    ],
)
def test_gguf_tokenizer_of_another_kind_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    metadata = _gguf_metadata({bytes([byte]): byte for byte in range(256)}, "smollm")
    with pytest.raises(TokenizerError, match=named):
        tokenizer_json(metadata | change, source="x.gguf")


@pytest.mark.parametrize("content", ["not a rank", "YQ== 0\nYg== 2", ""])
def test_damaged_tiktoken_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        TiktokenTokenizer(path)


@pytest.mark.parametrize("content", ["{", "{}", '{"version": "1.0"}'])
def test_damaged_tokenizer_json_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        JsonTokenizer(path)


def test_unknown_special_token_is_an_error_that_lists_those_there_are(smollm2: Path) -> None:
    with pytest.raises(TokenizerError, match="im_end"):
        JsonTokenizer(smollm2 / "tokenizer.json").special_id("<|eot_id|>")


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a byte, so that any split of any bytes can be pushed."""
    metadata = _gguf_metadata({bytes([byte]): byte for byte in range(256)}, "smollm", specials_first=True)
    return _written(tmp_path_factory.mktemp("bytes"), tokenizer_json(metadata, source="x"))


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)), cut=st.integers(0, 3))
def test_pushed_and_flushed_text_equals_the_decoding_of_all_bytes(
    bytes_tokenizer: Tokenizer, content: bytes, cut: int
) -> None:
    content = content[: max(0, len(content) - cut)]
    decoder = IncrementalDecoder(bytes_tokenizer)
    ids = [byte + len(SPECIALS) for byte in content]
    end = bytes_tokenizer.special_id("<|im_end|>")
    texts = [decoder.push(token) for token in [*ids, end]]
    assert "".join([*texts, decoder.flush()]) == content.decode("utf-8", errors="replace")
    assert bytes_tokenizer.decode([*ids, end]) == content.decode("utf-8", errors="replace")


def test_no_half_character_is_ever_pushed(bytes_tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(bytes_tokenizer)
    texts = [decoder.push(byte + len(SPECIALS)) for byte in "é👍".encode()]
    assert texts == ["", "é", "", "", "", "👍"]
    assert decoder.flush() == ""
