"""`/v1/chat/completions`: continues a conversation, which the checkpoint's chat template renders.

form = ChatForm(ChatBody(messages=[ChatMessage(role="user", content="What is 53 + 34?")]))
"""

from dpad.serving.choice import Token
from dpad.serving.exchange import Document
from dpad.serving.jobs import jobs_for
from dpad.serving.schema import ChatBody
from dpad.serving.service import Job, Service


class ChatForm:
    """One request for an assistant's turn."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: ChatBody) -> None:
        self.body = body

    @property
    def count(self) -> int:
        """Number of sequences of the request."""
        return self.body.n or 1

    def jobs(self, service: Service) -> list[Job]:
        """One job for each answer."""
        messages = [{"role": message.role, "content": message.content} for message in self.body.messages]
        return jobs_for(service.model, self.body, [service.model.request(messages)])

    def begin(self, job: Job) -> Document | None:
        """The role of the answer."""
        delta = {"role": "assistant", "content": ""}
        return {"index": job.choice.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, job: Job, texts: list[str]) -> Document:
        """Text that has become final."""
        return self._choice(job, "delta", {"content": texts[0]} if texts[0] else {})

    def choice(self, job: Job) -> Document:
        """A whole answer."""
        return self._choice(job, "message", {"role": "assistant", "content": job.choice.text})

    def _choice(self, job: Job, name: str, message: Document) -> Document:
        logprobs = {"content": list(map(_logprob, job.choice.news())), "refusal": None} if self.body.logprobs else None
        reason = job.finish_reason
        return {"index": job.choice.index, name: message, "logprobs": logprobs, "finish_reason": reason}


def _logprob(token: Token) -> Document:
    """The log-probability of a token, with its bytes if it consists of whole characters."""
    whole = None if "\ufffd" in token.text else list(token.text.encode())
    return {"token": token.text, "logprob": token.logprob, "bytes": whole, "top_logprobs": []}
