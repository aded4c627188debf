"""Chat templates of guards: which one it is, what it reads, and that it is followed. All templates here are our own."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from services.llama import checkpoint
from services.llama.chat_format import ChatMessage, JinjaChatFormat, Llama3ChatFormat
from services.llama.errors import ChatFormatError
from services.llama.guard_templates import recognise
from services.llama.template_ast import wants_parts
from services.llama.tokenizer import TiktokenTokenizer

STRING_TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
PART_TURNS = """{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}{% if part['type'] == 'text' %}
{{ part['text'] | trim }}{% endif %}{% endfor %}
{% endfor %}"""
IMAGE_TURNS = PART_TURNS.replace("{% endif %}", "{% elif part['type'] == 'image' %}<|image|>{% endif %}", 1)
LLAMA3 = ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")
LLAMA4 = ("<|begin_of_text|><|header_start|>user<|header_end|>\n\n", "<|eot|>")
INSTRUCTION = ("<s>[INST] ", " [/INST]")


def lines(letter: str, count: int) -> str:
    return "".join(f"{letter}{number}: Hazard {number}.\n" for number in range(1, count + 1))


def as_map(count: int) -> str:
    entries = ", ".join(f'"S{number}": "Hazard {number}"' for number in range(1, count + 1))
    return (
        f"{{% if not categories is defined %}}{{% set categories = {{{entries}}} %}}{{% endif %}}"
        "{% for key in categories if not (excluded_category_keys and key in excluded_category_keys) %}"
        "{{ key ~ ': ' ~ categories[key] ~ '.\n' }}{% endfor %}"
    )


def guard(frame: tuple[str, str], hazards: str, turns: str) -> str:
    """A guard's template with the structure that the model cards describe."""
    return f"{frame[0]}Judge.\n{hazards}Dialog:\n{turns}Answer 'safe' or 'unsafe', then codes.{frame[1]}"


GUARDS = {
    "llama-guard-1": guard(INSTRUCTION, lines("O", 6), STRING_TURNS),
    "llama-guard-2": guard(INSTRUCTION, lines("S", 11), STRING_TURNS),
    "llama-guard-3-8b": guard(LLAMA3, lines("S", 14), STRING_TURNS),
    "llama-guard-3-1b": guard(LLAMA3, as_map(13), PART_TURNS),
    "llama-guard-3-11b-vision": guard(LLAMA3, as_map(13), IMAGE_TURNS),
    "llama-guard-4": guard(LLAMA4, as_map(14), IMAGE_TURNS),
}


@pytest.mark.parametrize("name", GUARDS)
def test_every_guards_template_is_recognised_by_its_structure(name: str) -> None:
    assert recognise(GUARDS[name]) == name


def test_a_template_may_write_its_lines_as_one_string() -> None:
    written = lines("S", 14).replace("\n", "\\n")
    template = f"{LLAMA3[0]}{{{{ 'Judge.\\n{written}' }}}}{STRING_TURNS}Answer 'safe' or 'unsafe'.{LLAMA3[1]}"
    assert recognise(template) == "llama-guard-3-8b"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{{ messages[0]['content'] }}",
        f"{LLAMA3[0]}{STRING_TURNS}{LLAMA3[1]}",
        f"{LLAMA3[0]}llama-guard-3-8b: say safe or unsafe.{STRING_TURNS}",  # a name is no structure
        guard(LLAMA3, lines("S", 12), STRING_TURNS),
        guard(LLAMA3, lines("S", 13), STRING_TURNS),
        guard(LLAMA3, lines("S", 14), PART_TURNS),
        guard(LLAMA3, lines("S", 14).replace("S7:", "S70:"), STRING_TURNS),
        guard(LLAMA3, lines("O", 6), STRING_TURNS),
        guard(INSTRUCTION, lines("S", 14), STRING_TURNS),
        guard(INSTRUCTION, lines("S", 11) + lines("O", 6), STRING_TURNS),
        guard(LLAMA3, lines("S", 14), STRING_TURNS).replace("unsafe", "bad"),
        guard(LLAMA3, lines("S", 14), STRING_TURNS) + "{% if",
    ],
)
def test_other_templates_are_no_guards(template: str) -> None:
    assert recognise(template) is None


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{% for part in message.content %}{{ part.text }}{% endfor %}", True),
        ("{{ messages[0]['content'][0]['text'] }}", True),
        ("{{ message.content[0].text }}", True),
        ("{% set content = message['content'] %}{% for c in content %}{{ c.text }}{% endfor %}", True),
        ("{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p }}{% endfor %}", True),
        ("{{ message['content'] | trim }}", False),
        ("{{ message['content'][0] }}", False),
        ("{% for line in message.content.split('\n') %}{{ line }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% endfor %}{% endif %}", False),
    ],
)
def test_a_template_reads_parts_when_it_goes_through_the_content(template: str, parts: bool) -> None:
    assert wants_parts(Environment(autoescape=False).parse(template)) is parts


def chat_format(tokenizer: TiktokenTokenizer, name: str) -> JinjaChatFormat:
    return JinjaChatFormat(tokenizer, GUARDS[name], "<|begin_of_text|>", "<|eot_id|>")


def test_a_template_of_parts_is_given_parts(llama3_tokenizer: TiktokenTokenizer) -> None:
    messages = [ChatMessage(role="user", content="Hello <|eot_id|>"), ChatMessage(role="assistant", content="Hi")]
    ids = chat_format(llama3_tokenizer, "llama-guard-3-1b").render(messages)
    text = "".join(llama3_tokenizer.token_bytes(token).decode() or f"[{token}]" for token in ids)
    assert "user: Hello <|eot_id|>" in text.replace("\n", " ").replace("user:  ", "user: ")
    assert ids.count(llama3_tokenizer.special_id("<|eot_id|>")) == 1  # the frame's own
    assert "S13: Hazard 13." in text


def test_variables_of_a_template_are_taken_by_name(llama3_tokenizer: TiktokenTokenizer) -> None:
    form = chat_format(llama3_tokenizer, "llama-guard-3-1b")
    assert form.template_variables == {"categories", "excluded_category_keys"}
    messages = [ChatMessage(role="user", content="Hello")]
    excluded = llama3_tokenizer.decode(form.render(messages, arguments={"excluded_category_keys": ["S2", "S13"]}))
    assert "S1: Hazard 1." in excluded
    assert "S2:" not in excluded
    assert "S13:" not in excluded
    named = form.render(messages, arguments={"categories": {"C1": "Ours <|eot_id|>"}})
    assert "C1: Ours <|eot_id|>." in llama3_tokenizer.decode(named)
    assert named.count(llama3_tokenizer.special_id("<|eot_id|>")) == 1


def test_variables_that_a_template_does_not_name_are_refused(llama3_tokenizer: TiktokenTokenizer) -> None:
    messages = [ChatMessage(role="user", content="Hello")]
    for name in ("categorys", "messages", "bos_token"):
        with pytest.raises(ChatFormatError, match="excluded_category_keys"):
            chat_format(llama3_tokenizer, "llama-guard-3-1b").render(messages, arguments={name: 1})
    with pytest.raises(ChatFormatError, match="no chat template"):
        Llama3ChatFormat(llama3_tokenizer, "3.1").render(messages, arguments={"categories": {}})


def llama3_folder(folder: Path, tokenizer: Path, **settings: Any) -> Path:
    """The text side of a Llama 3 checkpoint."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 128256,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin_of_text|>", **settings}))
    (folder / "tokenizer.model").symlink_to(tokenizer)
    return folder


def test_a_guards_own_template_is_followed_though_its_tokenizer_is_llama_3s(
    llama3_tokenizer_file: Path, tmp_path: Path
) -> None:
    template = GUARDS["llama-guard-3-8b"] + "{# not for ipython #}"  # the word alone must not make it Llama 3's
    side = checkpoint.load_text(llama3_folder(tmp_path, llama3_tokenizer_file, chat_template=template))
    assert (side.guard, side.has_template) == ("llama-guard-3-8b", True)
    text = side.tokenizer.decode(side.chat_format.render([ChatMessage(role="user", content="How are you?")]))
    assert "S14: Hazard 14." in text
    assert "user: How are you?" in text


def test_a_llama_3_without_a_template_or_with_its_own_is_no_guard(llama3_tokenizer_file: Path, tmp_path: Path) -> None:
    for number, settings in enumerate(({}, {"chat_template": "<|start_header_id|>ipython<|end_header_id|>"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        side = checkpoint.load_text(llama3_folder(folder, llama3_tokenizer_file, **settings))
        assert side.guard is None
        assert side.has_template is bool(settings)
        assert isinstance(side.chat_format, Llama3ChatFormat)
