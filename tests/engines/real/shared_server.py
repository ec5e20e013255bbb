"""One server for a whole module of tests: started on a loop in a thread of its own, where its child is watched."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from orchestratord.infra.process import Child
from orchestratord.ports import Engine
from tests.engines.real.servers import server, until_ready


class SharedServer:
    """`with SharedServer(driver, process, make)`: ready from the first line of the body on. `reasons`: why it was not
    before. make: url -> an engine client."""

    def __init__(self, driver: str, process: dict[str, Any], make: Any) -> None:
        self._driver, self._process, self._make = driver, process, make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.reasons: list[str] = []
        self.child: Child

    def __enter__(self) -> SharedServer:
        self._thread.start()
        self._context = server(self._driver, self._process)
        self.child = self._run(self._context.__aenter__())
        try:
            self._run(self._wait())
        except BaseException:
            self.__exit__()
            raise
        return self

    async def _wait(self) -> None:
        engine = self._make(self.child.url)
        try:
            self.reasons = await until_ready(engine, self.child)
        finally:
            await engine.close()

    def __exit__(self, *_: object) -> None:
        self._run(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def engine(self, **options: Any) -> Engine:
        made: Engine = self._make(self.child.url, **options)
        return made

    def _run(self, body: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(body, self._loop).result()
