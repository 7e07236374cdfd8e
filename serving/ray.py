"""The same server as a Ray Serve application: replicas of one bundle, on several GPUs, CPUs or machines.

    serve run dpad.serving.ray:build bundle=/srv/bundles/tiny replicas=2 gpus=1 api_key_file=/etc/dpad/keys.txt

Ray's proxy hands each request to a replica that has room, holds `max_queued` more and refuses the rest with 429. A
replica that dies, or whose canary decodes nothing, is started again. `bundle` is a path that is right on every machine.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp

import dpad
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.decoding.limits import RUNNING
from dpad.runtime.errors import EngineError, InvalidRequest, MissingExtra
from dpad.runtime.extras import needed_by
from dpad.serving.app import application
from dpad.serving.keys import Keys
from dpad.serving.log import setup
from dpad.serving.service import Service
from dpad.serving.settings import PATIENCE, Settings

_MARGIN = 10.0  # seconds that Ray waits for a health check beyond what the check takes at most
_RETRY_AFTER = 1  # seconds


class Arguments(BaseModel):
    """Arguments of the application; Ray reads them from its command line or a config file.

    Attributes:
        bundle: folder of the bundle, the same on every machine, absolute.
        name: the name of the model for clients; empty is the folder's name.
        replicas: processes, each with an engine of its own.
        gpus: GPUs of each replica; Ray chooses them by CUDA_VISIBLE_DEVICES.
        cpus: CPUs of each replica, and its threads.
        engine: a name that `dpad inspect` lists.
        max_running: requests that a replica gets at a time; 0 is four times the bundle's `--max-batch`.
        slots: size of a replica's KV cache in tokens, as in `dpad serve --slots`.
        max_queued: requests that wait in a proxy for a replica; more are refused.
        api_key_file: file of accepted API keys, one per line, at the same path on every machine.
        allow_anonymous: serve everybody who can reach Ray's proxy without a key.
        drain_seconds: most seconds for a replica to finish its requests before it ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    name: str = ""
    replicas: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0)
    cpus: int = Field(1, ge=1)
    engine: str = "auto"
    max_running: int = Field(0, ge=0)
    slots: int | None = Field(None, ge=1)
    max_queued: int = Field(64, ge=0)
    api_key_file: Path | None = None
    allow_anonymous: bool = False
    drain_seconds: float = Field(30.0, ge=0)


class Replica:
    """One engine, and the routes of `dpad serve` over it."""

    def __init__(self, arguments: Arguments) -> None:
        """Open the bundle; Ray calls this in the replica's own process."""
        setup()
        if not arguments.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # otherwise a replica sees the GPUs that Ray gave to nobody
        keys = Keys.read(arguments.api_key_file) if arguments.api_key_file else None
        self._settings = Settings(arguments.name or arguments.bundle.name, keys=keys)
        model = dpad.load(
            arguments.bundle,
            engine=arguments.engine,
            threads=0 if arguments.gpus else arguments.cpus,
            slots=arguments.slots,
            max_running=arguments.max_running,
        )
        self._service = Service(model, self._settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray's proxy calls."""
        return application(self._service, self._settings)

    async def check_health(self) -> None:
        """Raise if the replica is not ready. Ray calls this often, and replaces a replica that fails three times."""
        if obstacle := await self._service.health.obstacle():
            raise EngineError(obstacle)


def build(arguments: Arguments) -> Any:
    """The application (`ray.serve.Application`), for `serve run`.

    Raises:
        InvalidRequest: there are no keys and no `allow_anonymous`, or a path is relative.
        BundleError: there is no bundle here.
        MissingExtra: Ray is not installed.
    """
    if arguments.api_key_file is None and not arguments.allow_anonymous:
        raise InvalidRequest(
            "the server would need no key, and Ray decides where its proxy listens; give api_key_file=FILE, "
            "or allow_anonymous=true where nobody else can reach it"
        )
    for path in filter(None, (arguments.bundle, arguments.api_key_file)):
        if not path.is_absolute():
            raise InvalidRequest(
                f"{path} is a relative path, and Ray's processes run in different folders; give the absolute path"
            )
    contract = Bundle.open(arguments.bundle, hashes=False).manifest.contract
    running = arguments.max_running or RUNNING * contract.max_batch
    with needed_by("dpad.serving.ray", MissingExtra):
        from ray import serve
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="dpad",
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        max_ongoing_requests=running,
        max_queued_requests=arguments.max_queued,
        backpressure_config={"status_code": 429, "retry_after_s": _RETRY_AFTER},
        health_check_timeout_s=PATIENCE + _MARGIN,
        graceful_shutdown_timeout_s=arguments.drain_seconds,
    )
    return deployment.bind(arguments.model_copy(update={"max_running": running}))
