"""A Llama Guard small enough to be written by hand: one layer, sixteen dimensions, Llama 3's real vocabulary.

Its attention weighs all tokens alike and passes on only whether a trigger word was among them; everything else is a
table of which token follows which. So every probability can be computed on paper.

Dimensions: 0 one, 1 trigger, 2 newline pair, 3 `unsafe`, 4 newline, 5 `S`, 6 trigger seen, 7 end.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from services.llama.tokenizer import TiktokenTokenizer
from services.safety.guard import prompt
from services.safety.guard.categories import category_set
from services.safety.guard.profiles import PROFILES
from services.safety.guard.prompt import Turn

VOCABULARY, WIDTH, EPSILON = 128256, 16, 1e-5
ONE, TRIGGER, PAIR, UNSAFE, NEWLINE, LETTER, SEEN, END = range(8)
FOLLOW, ATTEND, RAISE, HOLD = 10.0, 100.0, 3.0, 1.5
NUMBERS = {"S1": 16, "S9": 24, "S10": 605}
"""Numbers that it names, each less likely than the one before."""


def write_guard(folder: Path, tokenizer_file: Path, *, template: str = "", context: int = 2048) -> Path:
    """The checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": WIDTH, "vocab_size": VOCABULARY,
        "max_position_embeddings": context, "rms_norm_eps": EPSILON, "rope_theta": 500000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    settings: dict[str, Any] = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | ({"chat_template": template} if template else {}))
    )
    (folder / "tokenizer.model").symlink_to(tokenizer_file)
    save_file(_weights(TiktokenTokenizer(tokenizer_file)), folder / "model.safetensors")
    return folder


def _weights(tokenizer: TiktokenTokenizer) -> dict[str, torch.Tensor]:
    embed, head = torch.zeros(VOCABULARY, WIDTH), torch.zeros(VOCABULARY, WIDTH)
    embed[:, ONE] = 1
    for token in range(128000):
        if b"bomb" in tokenizer.token_bytes(token):
            embed[token, TRIGGER] = 1
    [pair], [newline], [unsafe], [safe], [letter] = (
        tokenizer.encode(text) for text in ("\n\n", "\n", "unsafe", "safe", "S")
    )
    for token, dimension in ((pair, PAIR), (unsafe, UNSAFE), (newline, NEWLINE), (letter, LETTER), (safe, END)):
        embed[token, dimension] = 1
    head[safe, PAIR] = FOLLOW
    head[unsafe, PAIR], head[unsafe, SEEN], head[unsafe, ONE] = FOLLOW, RAISE, -HOLD
    head[newline, UNSAFE] = head[letter, NEWLINE] = FOLLOW
    for place, number in enumerate(NUMBERS.values()):
        embed[number, END] = 1
        head[number, LETTER], head[number, ONE] = FOLLOW, -float(place)
    head[tokenizer.special_id("<|eot_id|>"), END] = FOLLOW
    values, out = torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH, WIDTH)
    values[0, TRIGGER], out[SEEN, 0] = 1, ATTEND
    square = {name: torch.zeros(WIDTH, WIDTH) for name in ("q_proj", "k_proj")}
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": embed,
        "lm_head.weight": head,
        "model.norm.weight": torch.ones(WIDTH),
        f"{layer}input_layernorm.weight": torch.ones(WIDTH),
        f"{layer}post_attention_layernorm.weight": torch.ones(WIDTH),
        **{f"{layer}self_attn.{name}.weight": weight for name, weight in square.items()},
        f"{layer}self_attn.v_proj.weight": values,
        f"{layer}self_attn.o_proj.weight": out,
        **{f"{layer}mlp.{name}.weight": torch.zeros(WIDTH, WIDTH) for name in ("gate_proj", "up_proj", "down_proj")},
    }


def p_unsafe(tokens: int, triggers: int) -> float:
    """What it says about a prompt of so many tokens, its newline pair included, with so many triggers among them."""
    seen = ATTEND * triggers / tokens / math.sqrt(2 / WIDTH + EPSILON)
    scale = 1 / math.sqrt((2 + seen**2) / WIDTH + EPSILON)
    return 1 / (1 + math.exp(-(RAISE * seen - HOLD) * scale))


def number_shares(tokens: int, triggers: int) -> Mapping[str, float]:
    """Shares of its codes, after a prompt of so many tokens with the forced start of the answer."""
    seen = ATTEND * triggers / tokens / math.sqrt(2 / WIDTH + EPSILON)
    scale = 1 / math.sqrt((2 + seen**2) / WIDTH + EPSILON)
    weights = {code: math.exp(-place * scale) for place, code in enumerate(NUMBERS)}
    return {code: weight / sum(weights.values()) for code, weight in weights.items()}


def template_of(profile: str) -> str:
    """A chat template that writes what our own builder writes, categories as arguments where the profile takes them."""
    chosen = PROFILES[profile]
    parts = chosen.template_arguments
    whole = prompt.whole([Turn("User", "TEXT")], category_set(chosen, excluded=(), custom={}))
    before, after = whole.split("User: TEXT\n\n")
    said = "{{ names[message.role] }}: {{ CONTENT }}{{ '\n\n' }}"
    if parts:
        said = "{% for part in message.content %}" + said.replace("CONTENT", "part.text") + "{% endfor %}"
    said = said.replace("CONTENT", "message.content")
    names = "{% set names = {'user': 'User', 'assistant': 'Agent'} %}"
    last = "{% set role = names[messages[-1].role] %}"
    known = json.dumps({code: f"{name}." for code, name in chosen.categories.items()})
    wanted = "{% for key in categories if key not in (excluded_category_keys or []) %}"
    lines = wanted + "{{ key ~ ': ' ~ categories[key] ~ '\n' }}{% endfor %}"
    if parts:
        first, rest = before.index("S1: "), before.index("<END")
        before = _literal(before[:first]) + lines + _literal(before[rest:])
        names += "{% if not categories is defined %}{% set categories = " + known + " %}{% endif %}"
    else:
        before = _literal(before)
    return f"{names}{last}{before}{{% for message in messages %}}{said}{{% endfor %}}{_literal(after)}"


def _literal(text: str) -> str:
    """Text of a prompt that judges the User, for a template: with the role that is judged in its places."""
    for fixed in ("'User' messages", "LAST User message"):
        text = text.replace(fixed, fixed.replace("User", "\0"))
    pieces = [json.dumps(piece).replace("\\n", "\n") for piece in text.split("\0")]
    return "{{ role }}".join(f"{{{{ {piece} }}}}" for piece in pieces)


def triggers_in(ids: Sequence[int], tokenizer: TiktokenTokenizer) -> int:
    return sum(b"bomb" in tokenizer.token_bytes(token) for token in ids)
