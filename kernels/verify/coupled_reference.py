"""Coupled verification in plain torch: the definition that the kernels are held to."""

from __future__ import annotations

import torch

from reprise.kernels.verify.constants import GREEDY_TEMPERATURE, PADDING_TOKEN_ID
from reprise.kernels.verify.gumbel import gumbel


def verify_coupled_torch(
    logits: torch.Tensor,  # [rows, vocab]
    row_token_ids: torch.Tensor,  # [rows]
    positions: torch.Tensor,  # [rows]
    row_slots: torch.Tensor,  # [rows]
    cu_num_logits: torch.Tensor,  # [batch + 1]
    *,
    temperature: torch.Tensor | None,  # [num_slots]
    top_k: torch.Tensor | None,  # [num_slots]
    top_p: torch.Tensor | None,  # [num_slots]
    min_p: torch.Tensor | None,  # [num_slots]
    seeds: torch.Tensor | None,  # [num_slots]
    max_draft: int,
    is_scaled: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `verify_coupled`: sample every row, keep a request's tokens up to the first miss."""
    device, batch = logits.device, cu_num_logits.shape[0] - 1
    num_rows = cu_num_logits.long().diff()
    request = torch.repeat_interleave(torch.arange(batch, device=device), num_rows)  # [rows]
    rows = logits.shape[0]
    place = torch.arange(rows, device=device) - cu_num_logits.long()[:-1][request]  # [rows]

    values = logits.float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    sampled = values.argmax(dim=-1)
    if temperature is not None and seeds is not None:
        owner = row_slots.long()
        is_random = (temperature[owner] >= GREEDY_TEMPERATURE) & values.amax(dim=-1).isfinite()
        random = is_random.nonzero().squeeze(1)
        owner = owner[random]
        scaled = values[random]
        if not is_scaled:
            scaled = scaled / temperature[owner].float()[:, None]
        kept = kept_tokens(
            scaled,
            top_k=None if top_k is None else top_k[owner],
            top_p=None if top_p is None else top_p[owner].float(),
            min_p=None if min_p is None else min_p[owner].float(),
        )
        noise = gumbel(seeds[owner], positions[random], values.shape[1])
        sampled[random] = (scaled + noise).masked_fill(~kept, -torch.inf).argmax(dim=-1)

    follows = torch.full((batch, max_draft + 1), PADDING_TOKEN_ID, device=device)
    # A request's first row writes to the last place, which has no draft.
    follows[request[1:], place[1:] - 1] = row_token_ids.long()[1:]
    tokens = torch.full_like(follows, PADDING_TOKEN_ID)
    tokens[request, place] = sampled
    has_draft = torch.arange(max_draft + 1, device=device) < num_rows[:, None] - 1
    accepts = (tokens == follows) & has_draft
    num_sampled = accepts.int().cumprod(dim=1).sum(dim=1, dtype=torch.int32) + 1  # [batch]
    emitted = torch.arange(max_draft + 1, device=device) < num_sampled[:, None]
    return tokens.masked_fill(~emitted, PADDING_TOKEN_ID), num_sampled


def kept_tokens(
    scaled: torch.Tensor,  # [n, vocab] float32 with a finite maximum, divided by the temperature
    *,
    top_k: torch.Tensor | None,  # [n]
    top_p: torch.Tensor | None,  # [n] float32
    min_p: torch.Tensor | None,  # [n] float32
) -> torch.Tensor:
    """Say which tokens min_p, top_k and top_p keep, in this order: [n, vocab] bool."""
    vocab = scaled.shape[1]
    kept = torch.ones_like(scaled, dtype=torch.bool)
    top = scaled.amax(dim=-1, keepdim=True)
    if min_p is not None:
        kept &= (scaled >= top + min_p[:, None].log()) | (min_p <= 0)[:, None]
    if top_k is not None:
        masked = scaled.masked_fill(~kept, -torch.inf)
        order = masked.sort(dim=-1, descending=True, stable=True).indices
        rank = order.argsort(dim=-1)  # the lower id first among equals
        off = (top_k < 1) | (top_k >= vocab)
        kept &= (rank < top_k[:, None]) | off[:, None]
    if top_p is not None:
        weights = (scaled - top).exp().masked_fill(~kept, 0).double()
        descending, order = scaled.sort(dim=-1, descending=True)
        mass = weights.gather(1, order)
        above = mass.cumsum(dim=-1) - mass  # strictly above, at the first of a tie
        num = (above < top_p[:, None] * mass.sum(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
        least = descending.gather(1, (num - 1).clamp(min=0))
        kept &= (scaled >= least) | (top_p >= 1)[:, None]
    return kept
