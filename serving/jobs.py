"""`jobs_for` makes the sequences of a request, and checks all of them before the first is decoded.

jobs_for(model, body, [model.request("What is 53 + 34?")])
"""

from collections.abc import Sequence
from dataclasses import replace

from dpad.runtime.decoding.options import Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.reader import Reader
from dpad.serving.choice import Choice
from dpad.serving.options import decoding, most_tokens
from dpad.serving.receipt import Receipt
from dpad.serving.schema import Sampling
from dpad.serving.service import Job


def jobs_for(model: Reader, body: Sampling, requests: Sequence[Request]) -> list[Job]:
    """Make `body.n` adjacent jobs for each of `requests`; the seed grows by one from answer to answer.

    Raises `InvalidRequest` if a request cannot be decoded.
    """
    options = decoding(model, body)
    resolved = model.options(**options)
    eos = resolved.ends_of_text(model.facts.contract.eos_token_id)
    jobs: list[Job] = []
    for request in requests:
        model.check(request, **options)
        for number in range(body.n or 1):
            choice = Choice(
                model.codec,
                eos,
                len(jobs),
                start=len(request.prompt_ids),
                length=resolved.gen_length,
                most=most_tokens(body, resolved),
                stop=body.stop or (),
            )
            seeded = replace(request, seed=resolved.seed + number)
            jobs.append(job_for(model, seeded, options, (choice,), body, again=number > 0))
    return jobs


def job_for(
    model: Reader,
    request: Request,
    options: Options,
    choices: tuple[Choice, ...],
    body: Sampling,
    again: bool = False,
) -> Job:
    """Make one job, with a receipt if `body` asks for one."""
    return Job(request, options, choices, Receipt.begun(model, request, options) if body.receipt else None, again)
