"""A run and those who wait for it."""

from __future__ import annotations

from contextlib import suppress

import anyio
import anyio.lowlevel

from tinyllm.actors.run import Run


class Running:
    """A run that has been started.

    It runs beside whoever waits for it: asyncio's own cancellation, which reaches into any wait, would take from it a
    message that had been delivered already.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._error: Exception | None = None

    async def act(self) -> None:
        try:
            with self._scope:
                await self.run.run()
        except Exception as error:
            self._error = error
        except anyio.get_cancelled_exc_class():
            await anyio.lowlevel.checkpoint_if_cancelled()  # raises if those who run all of this are cancelled
            # Else it was this task alone, by asyncio's own cancellation: no reason for the others to end.
        finally:
            self._ended.set()

    async def outcome(self) -> Run:
        """The run when it has ended. Cancelling this cancels it, and waits until it has left."""
        try:
            await self._ended.wait()
        except BaseException:
            self._scope.cancel()
            # Bounded: a run that leaves has deadlines of its own. What comes through the shield is asyncio's own
            # cancellation once more, which makes no difference: whoever left now would leave a run without a client.
            while not self._ended.is_set():
                with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                    await self._ended.wait()
            raise
        if self._error is not None:
            raise self._error
        self.run.raise_refusal()  # it may have been cancelled, and not been able to say so
        return self.run
