"""Verification in plain torch: the definition that every other backend is held to."""

from __future__ import annotations

import torch

from reprise.kernels.verify.constants import GREEDY_TEMPERATURE, PADDING_TOKEN_ID
from reprise.kernels.verify.noise import uniform


def verify_drafts_torch(
    logits: torch.Tensor,  # [num_draft + batch, vocab]
    draft_token_ids: torch.Tensor,  # [num_draft]
    cu_num_draft_tokens: torch.Tensor,  # [batch]
    *,
    temperature: torch.Tensor | None,  # [batch]
    top_k: torch.Tensor | None,  # [batch]
    top_p: torch.Tensor | None,  # [batch]
    min_p: torch.Tensor | None,  # [batch]
    seeds: torch.Tensor | None,  # [batch]
    offsets: torch.Tensor | None,  # [batch]
    max_draft: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `verify_drafts`: sample every row, keep a request's tokens up to the first miss."""
    device, batch = logits.device, cu_num_draft_tokens.shape[0]
    ends = cu_num_draft_tokens.long()
    num_drafts = ends.diff(prepend=ends.new_zeros(1))
    request = torch.repeat_interleave(torch.arange(batch, device=device), num_drafts + 1)  # [rows]
    first_row = ends - num_drafts + torch.arange(batch, device=device)  # [batch]
    position = torch.arange(logits.shape[0], device=device) - first_row[request]  # [rows]

    rows = logits.float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    sampled = rows.argmax(dim=-1)
    if temperature is not None and seeds is not None and offsets is not None:
        random = (temperature >= GREEDY_TEMPERATURE)[request].nonzero().squeeze(1)
        owner = request[random]
        sampled[random] = sample_rows(
            rows[random],
            uniform(seeds.long()[owner], offsets.long()[owner] + position[random]),
            temperature=temperature[owner].float(),
            top_k=None if top_k is None else top_k[owner],
            top_p=None if top_p is None else top_p[owner].float(),
            min_p=None if min_p is None else min_p[owner].float(),
        )

    is_draft = position < num_drafts[request]
    accepts = torch.zeros_like(is_draft)
    accepts[is_draft] = sampled[is_draft] == draft_token_ids.long()
    table = torch.zeros((batch, max_draft + 1), dtype=torch.bool, device=device)
    table[request, position] = accepts
    accepted = table.int().cumprod(dim=1).sum(dim=1, dtype=torch.int32)  # [batch]
    output = torch.full((batch, max_draft + 1), PADDING_TOKEN_ID, dtype=torch.int32, device=device)
    output[request, position] = sampled.clamp(min=0).int()
    emitted = torch.arange(max_draft + 1, device=device) <= accepted[:, None]
    return output.masked_fill(~emitted, PADDING_TOKEN_ID), accepted


def sample_rows(
    rows: torch.Tensor,  # [n, vocab] float32 without NaN
    noise: torch.Tensor,  # [n] float64 in (0, 1)
    *,
    temperature: torch.Tensor,  # [n] float32
    top_k: torch.Tensor | None,  # [n]
    top_p: torch.Tensor | None,  # [n] float32
    min_p: torch.Tensor | None,  # [n] float32
) -> torch.Tensor:
    """Invert the cumulative distribution at the noise: [n] int64, -1 without a finite maximum.

    Inverting needs one uniform a row, where a Gumbel sample needs one a token: the generator, not
    the read of the logits, would then bound the kernel.
    """
    weights = row_weights(rows, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    cumulative = weights.double().cumsum(dim=-1)
    target = noise[:, None] * cumulative[:, -1:]
    token = (cumulative <= target).sum(dim=-1)
    last = torch.where(weights > 0, torch.arange(rows.shape[1], device=rows.device), 0).amax(dim=-1)
    broken = ~rows.amax(dim=-1).isfinite()
    return torch.minimum(token, last).masked_fill(broken, -1)


def row_weights(
    rows: torch.Tensor,  # [n, vocab] float32 without NaN
    *,
    temperature: torch.Tensor,  # [n] float32
    top_k: torch.Tensor | None,  # [n]
    top_p: torch.Tensor | None,  # [n] float32
    min_p: torch.Tensor | None,  # [n] float32
) -> torch.Tensor:
    """The processed distribution up to its normaliser: [n, vocab] float32, 1 for the likeliest."""
    vocab = rows.shape[1]
    weights = ((rows - rows.amax(dim=-1, keepdim=True)) / temperature[:, None]).exp()
    if min_p is not None:
        weights = weights.where(weights >= min_p[:, None], 0)
    if top_k is None and top_p is None:
        return weights
    descending, order = rows.sort(dim=-1, descending=True)
    if top_k is not None:
        off = (top_k < 1) | (top_k >= vocab)
        kth = descending.gather(1, top_k.long().clamp(1, vocab)[:, None] - 1)
        weights = weights.where((rows >= kth) | off[:, None], 0)
    if top_p is not None:
        mass = weights.gather(1, order).double()
        above = mass.cumsum(dim=-1) - mass  # strictly above, at the first of a tie
        kept = (above < top_p[:, None] * mass.sum(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
        least = descending.gather(1, (kept - 1).clamp(min=0))
        weights = weights.where((rows >= least) | (top_p >= 1)[:, None], 0)
    return weights
