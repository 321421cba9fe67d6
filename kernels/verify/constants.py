"""What the backends of verification share with the dispatcher."""

import torch

PADDING_TOKEN_ID = -1
"""Fills the output behind the last emitted token, as in vLLM's sampler."""

GREEDY_TEMPERATURE = 1e-5
"""Below this temperature a request is greedy; vLLM's sampler draws the line at the same place."""

LOGITS_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INT_DTYPES = (torch.int32, torch.int64)
