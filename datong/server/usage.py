"""Counting tokens of a finished job."""

from __future__ import annotations

from datong.server.answers import CompletionDetails, PromptDetails, Usage
from datong.server.job import Job


def usage(job: Job, prompts: int, reasoning: int = 0) -> Usage:
    """`prompts`: how many different ones; choices of one prompt count it once."""
    requests = job.requests
    every = max(1, len(requests) // prompts)
    if requests:
        prompt = sum(request.result.prompt_tokens for request in requests[::every])
        cached = sum(request.result.cached_tokens for request in requests[::every])
    else:
        prompt, cached = sum(len(score.sequence.tokens) for score in job.scores), 0
    answer = sum(len(request.result.tokens) for request in requests)
    details = CompletionDetails(reasoning_tokens=reasoning)
    return Usage(prompt, answer, prompt + answer, PromptDetails(cached_tokens=cached), details)
