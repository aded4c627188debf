"""Which sandbox runs the code: the configured one, or the first that can."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.job import Tier, Unavailable
from services.tools.interpreter.native.tier import NativeTier
from services.tools.interpreter.wasm import module
from services.tools.interpreter.wasm.tier import WasmTier


class Tiers:
    """The tiers of one provider. Run `prepare` beside the calls; there is never code without a sandbox.

    Args:
        config: Which is wanted.
        cache_dir: For what can be made again.
        tell: Told the tier that is ready, or why none is.
    """

    def __init__(self, config: InterpreterConfig, *, cache_dir: Path, tell: Callable[[str], object]) -> None:
        self._wanted = config.tier
        wasm = config.tier == "wasm" or (config.tier == "auto" and not module.missing())
        self._wasm = WasmTier(config, cache_dir, tell=tell) if wasm else None
        self._native = None if wasm else NativeTier(config, tell=tell)

    @property
    def figures(self) -> bool:
        """Whether code has packages and figures."""
        return self._native is not None

    async def prepare(self) -> None:
        """Compile, probe, and keep processes ready, for ever; what cannot be is logged and told by the calls."""
        if self._wasm is not None:
            await self._wasm.prepare()
        if self._native is not None:
            await self._native.prepare()

    async def choose(self) -> Tier:
        """Where the next call runs.

        Raises:
            Unavailable: If nothing can run here; says why and what to do.
        """
        if self._wasm is not None:
            return self._wasm
        assert self._native is not None
        problem = await self._native.problem()
        if problem and self._wanted == "auto":
            raise Unavailable(f"tier wasm: not installed: {module.missing()}; {module.INSTALL}. tier native: {problem}")
        if problem:
            raise Unavailable(f"tier native: {problem}")
        return self._native

    async def forget(self, key: str) -> None:
        """A session is gone."""
        await asyncio.gather(*(tier.forget(key) for tier in (self._wasm, self._native) if tier is not None))

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(tier.close() for tier in (self._wasm, self._native) if tier is not None))
