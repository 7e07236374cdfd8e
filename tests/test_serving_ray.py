"""`dpad.serving.ray` as Ray's own `serve run` starts it: two replicas on this machine, one of them killed.

`make test-ray` installs Ray into an environment of its own; what needs none of it runs with the other tests.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from passes import until
from servers import LONG, Served, Stream

import dpad
from dpad.runtime import errors
from dpad.serving.ray import Arguments, build

ROOT = Path(__file__).resolve().parent.parent
SERVE = ROOT / ".venv-ray/bin/serve"
REAL_RAY = [pytest.mark.ray, pytest.mark.skipif(not SERVE.exists(), reason="Ray is not installed: make test-ray")]
KEY = "k3y-0123456789abcdef"
SHARE, QUEUE = 3, 6  # requests that a replica is given at a time, and that wait for one
START = 180.0  # seconds: Ray starts a dozen processes


class RayServed(Served):
    """An application of two replicas in a cluster that ends with it."""

    def __init__(self, folder: Path, **arguments: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.host, self.port = free.getsockname()[:2]
        application = {"name": "dpad", "route_prefix": "/", "import_path": "dpad.serving.ray:build", "args": arguments}
        listening = {"host": self.host, "port": self.port}
        config = {"proxy_location": "HeadOnly", "http_options": listening, "applications": [application]}
        (folder / "serve.yaml").write_text(json.dumps(config, default=str))
        self._scratch = tempfile.TemporaryDirectory(prefix="ray-")  # its sockets need a short path
        environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": self._scratch.name, "HOME": str(folder)}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self._said, self._log = None, tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [SERVE, "run", folder / "serve.yaml"], stdout=self._log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            until(self.two_answer, START)
        except BaseException:
            self.__exit__(None, None, None)
            sys.stderr.write(self.log())
            raise

    def two_answer(self) -> bool:
        """Whether two replicas do: each has a birthday among its metrics."""
        assert self.process.poll() is None, self.log()
        born = set()
        for _ in range(12):
            try:
                _, _, text = self.ask("GET", "/metrics", authorization=f"Bearer {KEY}")
            except OSError:
                return False
            born |= {line for line in str(text).splitlines() if line.startswith("dpad_sequences_admitted_created")}
        return len(born) == 2

    def replicas(self) -> list[int]:
        """Their processes."""
        return [pid for pid in self._descendants() if b"ray::ServeReplica" in _read(pid, "cmdline")]

    def _descendants(self) -> list[int]:
        parents = {int(each): _parent(int(each)) for each in os.listdir("/proc") if each.isdigit()}
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def __exit__(self, *error: Any) -> None:
        family = self._descendants()
        try:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        finally:
            super().__exit__(None, None, None)
            self._scratch.cleanup()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def _parent(pid: int) -> int:
    return int((_read(pid, "stat").rpartition(b")")[2].split() or [0, 0])[1])


@pytest.fixture(scope="module")
def served(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServed]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "keys.txt").write_text(f"{KEY}\n")
    limits = {"replicas": 2, "max_running": SHARE, "max_queued": QUEUE}
    with RayServed(folder, bundle=whole, name="random", api_key_file=folder / "keys.txt", **limits) as server:
        yield server


@pytest.fixture(scope="module")
def model(whole: Path) -> Iterator[dpad.DiffusionModel]:
    with dpad.load(whole, threads=1) as opened:
        yield opened


def long_text(model: dpad.DiffusionModel, prompt: str) -> str:
    """What the library writes to a streamed request of these tests."""
    options: Any = {"gen_length": 240, "decoder": "fixed", "block_length": 8, "cache": "prefix"}
    return model.generate(prompt, raw=True, schedule=dpad.Full(), **options).text


@contextmanager
def begun(served: Served, prompt: str) -> Iterator[list[Stream]]:
    """As many as two replicas are given at a time, all being written; the first event of each is the prompt."""
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(served, prompt, KEY, echo=True)) for _ in range(2 * SHARE)]
        yield [stream.begun() for stream in streams]


def text_of(stream: Stream) -> str | None:
    """What has come after the first event, and None where the end is missing."""
    try:
        events = stream.rest()
    except (HTTPException, OSError):
        return None
    return "".join(event["choices"][0]["text"] for event in events[:-1]) if events[-1:] == ["[DONE]"] else None


class TestUnderRay:
    pytestmark = REAL_RAY

    def test_answers_are_the_library_s(self, served: RayServed, model: dpad.DiffusionModel) -> None:
        """Fails if a replica writes other tokens, streamed or not, or Ray changes what OpenAI's client reads."""
        prompts = [f"w{number} w{number + 3}" for number in range(5, 17)]
        wanted = [model.generate(prompt, raw=True, gen_length=32).text for prompt in prompts]
        with served.client(KEY) as client:

            def answer(prompt: str) -> str:
                return client.completions.create(model="random", prompt=prompt, max_tokens=32).choices[0].text

            with ThreadPoolExecutor(4) as threads:
                assert list(threads.map(answer, prompts)) == wanted
            parts = client.completions.create(model="random", prompt=prompts[0], max_tokens=32, stream=True)
            assert "".join(part.choices[0].text for part in parts) == wanted[0]
            assert [each.id for each in client.models.list()] == ["random"]

    def test_the_doors_are_the_server_s(self, served: RayServed) -> None:
        """Fails if a stranger is let in through Ray, a probe is not, or errors lose OpenAI's form on the way."""
        assert served.ask("GET", "/health/ready")[0] == 200
        for headers in ({}, {"authorization": "Bearer wrong-0123456789abcdef"}):
            status, _, body = served.post("/v1/completions", {"prompt": "w5"}, **headers)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        status, _, body = served.post("/v1/completions", {"prompt": "w5", "zork": 1}, authorization=f"Bearer {KEY}")
        assert (status, body["error"]["param"]) == (400, "zork")

    def test_too_many_are_refused_at_once(self, served: RayServed, model: dpad.DiffusionModel, endless: str) -> None:
        """Fails if none of four times what there is room for is refused, or one is not answered at all."""
        asked = 4 * (2 * SHARE + QUEUE)
        body = {"prompt": endless, **LONG}

        def ask(number: int) -> tuple[int, dict[str, str], Any]:
            return served.post("/v1/completions", body, authorization=f"Bearer {KEY}")

        with ThreadPoolExecutor(asked) as threads:
            answers = list(threads.map(ask, range(asked)))
        refused = [headers["retry-after"] for status, headers, _ in answers if status == 429]
        texts = [told["choices"][0]["text"] for status, _, told in answers if status == 200]
        assert len(refused) + len(texts) == asked and set(refused) == {"1"}
        assert set(texts) == {long_text(model, endless)}

    def test_a_replica_that_is_killed_takes_only_its_own(
        self, served: RayServed, model: dpad.DiffusionModel, endless: str, record_property: Callable[[str, float], None]
    ) -> None:
        """Fails if its death ends a request of the other, or one that comes then, or none takes its place."""
        before, wanted = served.replicas(), long_text(model, endless)
        assert len(before) == 2
        later = {"prompt": "w5 w8", "max_tokens": 32}
        with begun(served, endless) as streams:
            os.kill(before[0], signal.SIGKILL)
            killed = time.monotonic()
            status, _, told = served.post("/v1/completions", later, authorization=f"Bearer {KEY}")
            assert status == 200, told
            texts = [text_of(stream) for stream in streams]
        assert 1 <= texts.count(None) <= SHARE and set(texts) == {None, wanted}, texts
        until(served.two_answer, START)
        record_property("in_flight", len(streams))
        record_property("at_the_killed_one", SHARE)
        record_property("lost", texts.count(None))
        record_property("s_until_two_answer", round(time.monotonic() - killed, 1))
        assert before[1] in served.replicas() and before[0] not in served.replicas()
        with begun(served, endless) as streams:
            assert {text_of(stream) for stream in streams} == {wanted}


def test_nobody_is_let_in_by_accident(whole: Path, tmp_path: Path) -> None:
    """Fails if an application asks nobody for a key, or is built of a path that is another elsewhere, or of nothing."""
    for given, kind, said in (
        ({"bundle": whole}, errors.InvalidRequest, "give api_key_file=FILE"),
        ({"bundle": "bundles/tiny", "allow_anonymous": "true"}, errors.InvalidRequest, "give the absolute path"),
        ({"bundle": whole, "api_key_file": "keys.txt"}, errors.InvalidRequest, "give the absolute path"),
        ({"bundle": tmp_path, "allow_anonymous": "true"}, errors.BundleError, str(tmp_path)),
    ):
        with pytest.raises(kind, match=said):
            build(Arguments.model_validate(given))
    with pytest.raises(ValueError, match="zork"):
        Arguments.model_validate({"bundle": whole, "zork": 1})


def test_without_ray_it_says_what_to_install(whole: Path) -> None:
    """Fails if whoever has no Ray gets a traceback that does not say how to get it."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from dpad.serving.ray import Arguments, build\n"
        f"build(Arguments(bundle={str(whole)!r}, allow_anonymous=True))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtra: dpad.serving.ray needs ray: pip install '.[ray]' in a checkout" in ran.stderr


def test_ray_hears_of_an_engine_that_decodes_nothing(whole: Path) -> None:
    """Fails if a replica whose engine fails is kept, or a sound one is replaced."""
    code = (
        "import asyncio\n"
        "from dpad.runtime.engines.onnx import OnnxEngine\n"
        "from dpad.serving.ray import Arguments, Replica\n"
        f"arguments = Arguments(bundle={str(whole)!r}, max_running=2)\n"
        "asyncio.run(Replica(arguments).check_health())\n"
        "print('sound')\n"
        "OnnxEngine._step = None\n"
        "asyncio.run(Replica(arguments).check_health())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "sound\n" and "EngineError: the engine decodes nothing" in ran.stderr
