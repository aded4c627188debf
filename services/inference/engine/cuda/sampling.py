"""Choosing the next tokens of all requests at once, where the logits are.

A draw is the most likely token after noise: the largest of logit - log(e), with e exponentially distributed, follows
the softmax (the "Gumbel-max trick", arXiv:1611.00712, section 2). The noise of a token is a hash of the request's seed,
the number of the draw and the token id, so that a seeded draw does not depend on who shares the step.

Shapes: R rows, V vocabulary, K tokens asked for, W words of 32 bits that cover the vocabulary, A places for requests.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from services.inference.engine.cuda.drawing import Choice, Draw
from services.inference.engine.cuda.transfer import Arriving, on_device, sent
from services.inference.engine.request import Logprobs, Sampling
from services.inference.engine.sampler import LEAST_TEMPERATURE

WORD_BITS = 32
FIRST_PLACES = 64
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: the step between the inputs of SplitMix64."""


class DeviceSampler:
    """Draws for every request in a step, and remembers what each one has drawn.

    Args:
        vocab_size: Length of a row of logits.
        device: Where they are.
    """

    def __init__(self, *, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._token_keys_V = _keys(vocab_size).to(device)
        self._places: dict[str, int] = {}
        self._free = list(range(FIRST_PLACES))
        self._tokens_A = torch.zeros(FIRST_PLACES, dtype=torch.long, device=device)
        # Per request with penalties: which tokens were in prompt or answer, and how often each was in the answer.
        self._uses: dict[str, tuple[Tensor, Tensor]] = {}

    def last_tokens(self, request_ids: Sequence[str]) -> Tensor:
        """What these requests drew last."""
        return self._tokens_A[on_device([self._places[name] for name in request_ids], self._device)]

    def forget(self, request_id: str) -> None:
        """Give a request's place to others."""
        place = self._places.pop(request_id, None)
        if place is not None:
            self._free.append(place)
        self._uses.pop(request_id, None)

    def draw(self, logits_RV: Tensor, draws: Sequence[Draw]) -> "DrawnTokens":
        """Choose a token per row; the rows are those of `draws`. The logits are not changed."""
        if not draws:
            return DrawnTokens(Arriving([]), [])
        changed_RV = self._penalised(logits_RV, draws)
        changed_RV = self._masked(changed_RV, draws)
        tokens_R = changed_RV.argmax(-1)
        drawing = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
        if drawing:
            rows_R = on_device(drawing, self._device)
            drawn_R = self._drawn(changed_RV[rows_R], [draws[row] for row in drawing])
            tokens_R = tokens_R.index_copy(0, rows_R, drawn_R)
        places_R = on_device([self._place(draw.request_id) for draw in draws], self._device)
        self._tokens_A[places_R] = tokens_R
        for row, draw in enumerate(draws):
            if draw.sampling.changes_logits:
                seen_V, counts_V = self._uses[draw.request_id]
                seen_V[tokens_R[row : row + 1]] = True
                counts_V[tokens_R[row : row + 1]] += 1
        samplings = [draw.sampling for draw in draws]
        return DrawnTokens(Arriving([tokens_R, *_logprobs(logits_RV, tokens_R, samplings)]), samplings)

    def _place(self, request_id: str) -> int:
        if request_id not in self._places:
            if not self._free:
                size = len(self._tokens_A)
                self._free = list(range(size, 2 * size))
                self._tokens_A = torch.cat([self._tokens_A, torch.zeros_like(self._tokens_A)])
            self._places[request_id] = self._free.pop()
        return self._places[request_id]

    def _penalised(self, logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The logits after penalties and biases; a copy if there are any."""
        rows = [row for row, draw in enumerate(draws) if draw.sampling.changes_logits]
        if not rows:
            return logits_RV
        options = [draws[row].sampling for row in rows]
        uses = [self._used(draws[row]) for row in rows]
        seen_RV, counts_RV = torch.stack([seen for seen, _ in uses]), torch.stack([counts for _, counts in uses])
        chosen_RV = logits_RV[on_device(rows, self._device)]
        repetition_R1 = self._column(options, lambda option: option.repetition_penalty)
        weakened_RV = torch.where(chosen_RV > 0, chosen_RV / repetition_R1, chosen_RV * repetition_R1)
        chosen_RV = torch.where(seen_RV, weakened_RV, chosen_RV)
        chosen_RV -= self._column(options, lambda option: option.frequency_penalty) * counts_RV
        chosen_RV -= self._column(options, lambda option: option.presence_penalty) * (counts_RV > 0)
        biases = [(row, *pair) for row, option in enumerate(options) for pair in option.logit_bias]
        if biases:
            at = [on_device([bias[part] for bias in biases], self._device) for part in (0, 1)]
            added = on_device([bias[2] for bias in biases], self._device, dtype=torch.float32)
            chosen_RV.index_put_((at[0], at[1]), added, accumulate=True)
        return logits_RV.index_copy(0, on_device(rows, self._device), chosen_RV)

    def _used(self, draw: Draw) -> tuple[Tensor, Tensor]:
        if draw.request_id not in self._uses:
            seen_V = torch.zeros(len(self._token_keys_V), dtype=torch.bool, device=self._device)
            seen_V[on_device(draw.prompt_ids, self._device)] = True
            self._uses[draw.request_id] = (seen_V, torch.zeros(len(seen_V), device=self._device))
        return self._uses[draw.request_id]

    def _masked(self, logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
        """What a grammar forbids at minus infinity; a copy if there is a grammar."""
        masks = {row: draw.mask_W for row, draw in enumerate(draws) if draw.mask_W is not None}
        if not masks:
            return logits_RV
        words_RW = sent(torch.from_numpy(np.stack(list(masks.values()))), self._device)
        bits_RW32 = (words_RW[:, :, None] >> torch.arange(WORD_BITS, dtype=torch.int32, device=self._device)) & 1
        allowed_RV = bits_RW32.flatten(1)[:, : logits_RV.shape[1]].bool()
        rows_R = on_device(list(masks), self._device)
        return logits_RV.index_copy(0, rows_R, logits_RV[rows_R].masked_fill(~allowed_RV, float("-inf")))

    def _drawn(self, logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Temperature, then top-k, then top-p, then one draw per row."""
        options = [draw.sampling for draw in draws]
        temperature_R1 = self._column(options, lambda option: max(option.temperature, LEAST_TEMPERATURE))
        # From the maximum down, so that a tiny temperature cannot overflow to infinity: it only comes out greedy.
        scores_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)) / temperature_R1
        keys_R1 = on_device([[_signed(_mix(draw.seed + GOLDEN * (draw.number + 1)))] for draw in draws], self._device)
        noisy_RV = scores_RV - _exponential(_mixed(keys_R1 ^ self._token_keys_V)).log()
        cut = [row for row, option in enumerate(options) if option.top_k or option.top_p < 1.0]
        if cut:
            rows_R = on_device(cut, self._device)
            kept_RV = self._kept(scores_RV[rows_R], [options[row] for row in cut])
            noisy_RV = noisy_RV.index_copy(0, rows_R, noisy_RV[rows_R].masked_fill(~kept_RV, float("-inf")))
        return noisy_RV.argmax(-1)

    def _kept(self, scores_RV: Tensor, options: Sequence[Sampling]) -> Tensor:
        """Which tokens top-k and then top-p leave."""
        vocabulary = scores_RV.shape[1]
        ordered_RV, ids_RV = scores_RV.sort(dim=-1, descending=True)
        places_V = torch.arange(vocabulary, device=self._device)
        most_R1 = self._column(options, lambda option: float(min(option.top_k or vocabulary, vocabulary)))
        ordered_RV = ordered_RV.masked_fill(places_V >= most_R1, float("-inf"))
        probabilities_RV = ordered_RV.softmax(-1)
        # A token stays while the mass before it is below top_p; the first one always stays.
        before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
        top_p_R1 = self._column(options, lambda option: option.top_p)
        kept_RV = (places_V < most_R1) & ((before_RV < top_p_R1) | (top_p_R1 >= 1.0) | (places_V == 0))
        return torch.zeros_like(kept_RV).scatter(1, ids_RV, kept_RV)

    def _column(self, options: Sequence[Sampling], value: Callable[[Sampling], float]) -> Tensor:
        return on_device([[value(option)] for option in options], self._device, dtype=torch.float32)


class DrawnTokens:
    """See `Drawn`."""

    def __init__(self, arriving: Arriving, samplings: Sequence[Sampling]) -> None:
        self._arriving = arriving
        self._samplings = samplings

    def read(self) -> list[Choice]:
        """See `Drawn`."""
        arrived = [tensor.tolist() for tensor in self._arriving.wait()]
        if not arrived:
            return []
        if len(arrived) == 1:
            return [Choice(token, None) for token in arrived[0]]
        choices = []
        rows = zip(*arrived, self._samplings, strict=True)
        for token, chosen, values, ids, asked, sampling in rows:
            top = sampling.top_logprobs
            pairs = tuple(zip(ids[:top], values[:top], strict=True))
            of_asked = tuple(asked[: len(sampling.asked_tokens)])
            choices.append(Choice(token, None if top is None else Logprobs(chosen=chosen, top=pairs, asked=of_asked)))
        return choices


def _logprobs(logits_RV: Tensor, tokens_R: Tensor, samplings: Sequence[Sampling]) -> list[Tensor]:
    """Of the chosen tokens, values and ids of the most likely ones, values of those asked for; nothing for nobody."""
    tops = [sampling.top_logprobs for sampling in samplings if sampling.top_logprobs is not None]
    if not tops:
        return []
    logprobs_RV = logits_RV.log_softmax(-1)
    width = max(len(sampling.asked_tokens) for sampling in samplings)
    asked_RK = logprobs_RV[:, :0]
    if width:  # rows that ask for fewer are filled up with token 0, which reading leaves out
        ids = [[*sampling.asked_tokens, *[0] * (width - len(sampling.asked_tokens))] for sampling in samplings]
        asked_RK = logprobs_RV.gather(1, on_device(ids, logits_RV.device))
    chosen_R = logprobs_RV.gather(1, tokens_R[:, None])[:, 0]
    return [chosen_R, *logprobs_RV.topk(max(tops), dim=-1), asked_RK]


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), modulo 2^64."""
    value &= 2**64 - 1
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def _mixed(values: Tensor) -> Tensor:
    """`_mix` of each; int64, whose products wrap as modulo 2^64."""
    values = (values ^ _shifted(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Right shift that brings in zeros, not copies of the sign."""
    shifted: Tensor = (values >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(value: int) -> int:
    """The same 64 bits as a signed number."""
    return value - 2**64 if value >= 2**63 else value


def _keys(count: int) -> Tensor:
    """A number for each token id, the same on every device."""
    return _mixed(torch.arange(1, count + 1) * _signed(GOLDEN))


def _exponential(bits: Tensor) -> Tensor:
    """Exponentially distributed numbers above 0 from 64 random bits each."""
    # Small ones decide the draw, so precision is kept there: uniform numbers near 0 have all of theirs.
    uniform = (_shifted(bits, 11).float() + 0.5) * 2.0**-53
    waits: Tensor = -torch.log1p(-uniform)
    return waits
