"""Applications of every mode in one process, behind real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
from prometheus_client.parser import text_string_to_metric_families

from pdray.config import PdrayConfig, parse_config
from pdray.frontend.text import Tokenizer
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.http_server import serving
from tests.local_cluster import config_of, until_idle
from tests.service import api_of, running_service, serving_service

MODEL = "tiny"
MODES = ("soft", "pooled", "auto", "service")
OUTPUT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Application:
    client: openai.AsyncOpenAI
    clusters: Sequence[LocalCluster]

    @property
    def workers(self) -> list[Worker]:
        return [worker for cluster in self.clusters for worker in cluster.workers]

    def num_computed(self) -> int:
        """Prompt tokens, on all workers so far."""
        found = 0.0
        for worker in self.workers:
            for family in text_string_to_metric_families(worker.metrics.text().decode()):
                for sample in family.samples:
                    is_prefill = sample.labels.get("phase") == "prefill"
                    if sample.name == "pdray_engine_tokens_total" and is_prefill:
                        found += sample.value
        return int(found)

    async def ask(self, prompt: list[int], n: int = 1, *, is_streamed: bool = False) -> int:
        """How many tokens the answer says were cached, and has them computed otherwise."""
        fields = {"model": MODEL, "prompt": prompt, "n": n, "max_tokens": OUTPUT_TOKENS}
        if is_streamed:
            options = {"include_usage": True}
            usage = None
            async for chunk in await self.client.completions.create(
                **fields, stream=True, stream_options=options
            ):
                usage = chunk.usage or usage
        else:
            usage = (await self.client.completions.create(**fields)).usage
        assert usage is not None
        assert usage.prompt_tokens == len(prompt)
        assert usage.prompt_tokens_details is not None
        for cluster in self.clusters:
            await until_idle(cluster)
        return usage.prompt_tokens_details.cached_tokens


def config_in(mode: str, model_path: Path) -> PdrayConfig:
    if mode == "pooled":
        return config_of(model_path)
    data = config_of(model_path).model_dump(mode="json")
    pool = data["pools"]["decode"] | {"role": "mixed", "replicas": 2}
    return parse_config(
        data | {"mode": mode, "pools": {"mixed": pool}, "controller": {"placement": "cost"}}
    )


@asynccontextmanager
async def running(mode: str, model_path: Path, folder: Path) -> AsyncIterator[Application]:
    tokenizer = Tokenizer(model_path)
    async with AsyncExitStack() as stack:
        if mode == "service":
            service = await stack.enter_async_context(running_service(model_path, folder))
            urls = await stack.enter_async_context(serving_service(service, tokenizer, MODEL))
            url, clusters = urls.decode, [service.prefill, service.decode]
        else:
            cluster = LocalCluster(config_in(mode, model_path), model_path)
            clusters = [await stack.enter_async_context(cluster)]
            url = await stack.enter_async_context(serving(api_of(cluster, tokenizer, MODEL, None)))
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield Application(await stack.enter_async_context(client), clusters)
