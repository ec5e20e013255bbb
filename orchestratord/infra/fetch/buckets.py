"""S3: where an object is, signed if there is a key. Signing needs the extra `s3`; the bytes come like all others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import quote

from orchestratord.domain.modelref import BucketRef
from orchestratord.domain.url import Url, join, parse_url
from orchestratord.infra.fetch.download import Source
from orchestratord.infra.fetch.policy import S3Access
from orchestratord.ports import ModelUnavailable

VALID = timedelta(days=7)  # the longest there is
SAFE = "/-._~"  # S3 takes + for a space


class Buckets:
    def __init__(self, access: S3Access, environ: Mapping[str, str] = os.environ) -> None:
        self._access = access
        self._environ = environ

    async def sources(self, ref: BucketRef) -> dict[str, Source]:
        """Name -> where it is. Raises ModelUnavailable when it cannot be signed."""
        name = ref.key.rpartition("/")[2]
        return {name: Source(str(ref), await self._url(ref))}

    async def _url(self, ref: BucketRef) -> Url:
        access = self._access
        key_id, secret = self._environ.get(access.access_key_env), self._environ.get(access.secret_key_env)
        if not key_id or not secret:
            # A public object; if it is not, the server says so.
            return join(access.endpoint, f"/{ref.bucket}/{quote(ref.key, safe=SAFE)}")
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError:
            raise ModelUnavailable(
                "NOT_INSTALLED",
                f"{ref}: {access.access_key_env} is set, and signing needs the extra: pip install 'orchestratord[s3]'. "
                "Unset it for a public bucket.",
            ) from None
        store = S3Store(
            ref.bucket,
            endpoint=f"https://{access.endpoint.netloc}",
            region=access.region,
            access_key_id=key_id,
            secret_access_key=secret,
            virtual_hosted_style_request=False,
            config={"session_token": token} if (token := self._environ.get(access.session_token_env)) else None,
        )
        return parse_url(await obstore.sign_async(store, "GET", ref.key, VALID))  # computed, nobody is asked
