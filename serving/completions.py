"""`/v1/completions`: continues text or token ids.

form = CompletionForm(CompletionBody(prompt=["What is 53 + 34?"]))
"""

from dpad.runtime.decoding.prompts import Prompt
from dpad.runtime.errors import InvalidRequest
from dpad.serving.choice import Token
from dpad.serving.exchange import Document
from dpad.serving.jobs import jobs_for
from dpad.serving.schema import CompletionBody
from dpad.serving.service import Job, Service


class CompletionForm:
    """One request for completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: CompletionBody) -> None:
        self.body = body

    @property
    def count(self) -> int:
        """Number of sequences of the request."""
        return len(self.body.prompt) * (self.body.n or 1)

    def jobs(self, service: Service) -> list[Job]:
        """One job for each answer; the answers to a prompt are adjacent."""
        model, suffix = service.model, self.body.suffix
        prompts: list[Prompt] = list(self.body.prompt)
        for prompt in self.body.prompt:
            _check_length(prompt, model.facts.contract.max_length)
        return jobs_for(model, self.body, [model.request(prompt, raw=True, suffix=suffix) for prompt in prompts])

    def begin(self, job: Job) -> Document | None:
        """The prompt, if the request has `echo`."""
        echoed = self._echoed(job)
        return {"index": job.choice.index, "text": echoed, "logprobs": None, "finish_reason": None} if echoed else None

    def piece(self, job: Job, texts: list[str]) -> Document:
        """Text that has become final."""
        return self._choice(job, texts[0])

    def choice(self, job: Job) -> Document:
        """A whole answer."""
        return self._choice(job, self._echoed(job) + job.choice.text)

    def _choice(self, job: Job, text: str) -> Document:
        logprobs = None if self.body.logprobs is None else self._logprobs(job.choice.news(), len(self._echoed(job)))
        reason = job.finish_reason
        return {"index": job.choice.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _echoed(self, job: Job) -> str:
        """The prompt as it was given."""
        if not self.body.echo:
            return ""
        given = self.body.prompt[job.choice.index // (self.body.n or 1)]
        return given if isinstance(given, str) else job.text_of(given)

    def _logprobs(self, tokens: list[Token], offset: int) -> Document:
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{token.text: token.logprob} for token in tokens] if self.body.logprobs else None,
            "text_offset": [offset + token.offset for token in tokens],
        }


def _check_length(prompt: str | list[int], most: int) -> None:
    """Raise `InvalidRequest` for more ids than a canvas holds, before the ids are checked one by one."""
    if not isinstance(prompt, str) and len(prompt) > most:
        raise InvalidRequest(
            f"a prompt of {len(prompt)} tokens is over the {most} of this bundle's canvas; "
            "shorten it, or export with a larger --max-length"
        )
