"""`NullBuilder`: the builder part of TensorRT's API; it accepts every call and builds nothing.

    trt = Checked(NullBuilder(), tensorrt)
    build_plan(trt, step, contract, "float16", "9.0", progress)
    trt.told                                  # the arguments that the configuration and the profiles got

It checks nothing itself: inside `Checked`, the real classes decide which calls are valid.
"""

from types import SimpleNamespace
from typing import Any


class NullBuilder:
    """Replaces the module `tensorrt`."""

    __name__, __version__ = "tensorrt", "11.4.0.106"

    def __init__(self, parses: bool = True, builds: bool = True) -> None:
        self.parses, self.builds = parses, builds
        self.told: list[tuple[Any, ...]] = []

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        """`trt.Builder`."""
        config = SimpleNamespace(
            hardware_compatibility_level=None,
            progress_monitor=None,
            set_flag=self._hear("set_flag"),
            set_memory_pool_limit=self._hear("set_memory_pool_limit"),
            add_optimization_profile=self._hear("add_optimization_profile", 0),
            create_timing_cache=lambda data: SimpleNamespace(serialize=lambda: b"timings"),
            set_timing_cache=lambda cache, ignore: self.told.append(("set_timing_cache", ignore)) or True,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
        )
        self.config = config

        def build(network: Any, config: Any) -> bytes | None:
            monitor = config.progress_monitor
            monitor.phase_start("phase", None, 2)  # a phase without a parent, for which the binding passes None
            assert monitor.step_complete("phase", 1)
            monitor.phase_finish("phase")
            logger.log(None, "null: nothing was built")
            return b"a plan" if self.builds else None

        return SimpleNamespace(
            create_network=self._hear("create_network", SimpleNamespace()),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=self._hear("set_shape")),
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        """`trt.OnnxParser`."""
        return SimpleNamespace(
            parse_from_file=lambda path: self.parses, num_errors=1, get_error=lambda place: "null: no such op"
        )

    def _hear(self, name: str, answer: Any = None) -> Any:
        def hear(*arguments: Any) -> Any:
            self.told.append((name, *arguments))
            return answer

        return hear
