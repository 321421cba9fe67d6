"""Draft look-up in plain torch: the definition that the kernel is held to."""

from __future__ import annotations

import torch

from reprise.kernels.lookup import MAX_MATCH


def lookup_drafts_torch(
    tail_token_ids: torch.Tensor,  # [batch, tail]
    answer_token_ids: torch.Tensor,  # [num_answer_tokens]
    answer_offsets: torch.Tensor,  # [num_answers + 1]
    request_offsets: torch.Tensor,  # [batch + 1]
    num_wanted: torch.Tensor,  # [batch]
    *,
    max_draft: int,
    min_match: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.lookup.lookup_drafts`."""
    batch = tail_token_ids.shape[0]
    drafts = torch.full((batch, max_draft), -1, dtype=torch.int32)
    matches = torch.zeros(batch, dtype=torch.int32)
    tokens, bounds = answer_token_ids.tolist(), answer_offsets.tolist()
    for request, tail in enumerate(tail_token_ids.tolist()):
        wanted = min(int(num_wanted[request]), max_draft)
        best, draft = min_match - 1, []
        for number in range(int(request_offsets[request]), int(request_offsets[request + 1])):
            answer = tokens[bounds[number] : bounds[number + 1]]
            for position in reversed(range(1, len(answer))):
                match = _match(tail, answer[max(0, position - MAX_MATCH) : position])
                if match > best:
                    best, draft = match, answer[position : position + wanted]
        if wanted > 0 and draft:
            drafts[request, : len(draft)] = torch.tensor(draft, dtype=torch.int32)
            matches[request] = best
    return drafts.to(tail_token_ids.device), matches.to(tail_token_ids.device)


def _match(tail: list[int], before: list[int]) -> int:
    """How many of the last tokens are equal; -1 in `tail` equals nothing."""
    match = 0
    for one, other in zip(reversed(tail), reversed(before), strict=False):
        if one != other or one < 0:
            break
        match += 1
    return match
