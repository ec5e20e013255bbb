"""Engines whose model is a reference: it is brought here first, then they start as any other."""

from __future__ import annotations

from dataclasses import replace

from orchestratord.domain.modelref import is_reference
from orchestratord.ports import ModelFiles, ModelUnavailable, ProcessSpec, ReplicaHost, ReplicaProcess


class FetchingHost:
    """See `ports.ReplicaHost`. Replicas of one model share its download, and each of them waits for it."""

    def __init__(self, host: ReplicaHost, files: ModelFiles) -> None:
        self._host = host
        self._files = files

    async def start(self, spec: ProcessSpec) -> ReplicaProcess:
        if is_reference(spec.model_path):
            try:
                path = await self._files.resolve(spec.model_path)
                await self._files.verify(path)
            except ModelUnavailable as error:
                raise OSError(str(error)) from error
            spec = replace(spec, model_path=path)
        return await self._host.start(spec)
