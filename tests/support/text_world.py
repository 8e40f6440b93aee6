"""Hub and a real node with a small text model over real sockets, for clients as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import trio

from emcd.clock import SystemClock
from emcd.config import KeyFile
from emcd.inference.golden_tokens import make_text_golden
from emcd.inference.manifest import (
    CHAT_TEMPLATE_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    TextManifest,
)
from emcd.inference.model_folder import ModelFolder, hash_files, write_model_folder
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.ledger import open_ledger
from emcd.testing import make_context, running_role
from emcd_node.config import ModelConfig, NodeConfig
from emcd_node.role import SPEC
from tests.support.decoder_model import ToyDecoder
from tests.support.hub_world import DEPLOYMENT, HUB_KEY, HubWorld, node_key, running_world

TEXT_MODEL = "toy-writer"
NODE_FILE = KeyFile(Path("node.json"))


def write_toy_folder(models_dir: Path, toy: ToyDecoder, *, can_chat: bool = True) -> ModelFolder:
    """The toy decoder as a model that can be sold."""
    (stop,) = TextTokenizer(toy.tokenizer).encode("<|im_end|>", specials=False)
    golden = make_text_golden(toy.onnx, toy.tokenizer, context_tokens=toy.shape.context, stop_tokens=(stop,))
    files: dict[str, bytes | Path] = {
        GRAPH_FILE: toy.onnx,
        TOKENIZER_FILE: toy.tokenizer,
        GOLDEN_FILE: golden,
    }
    if can_chat:
        files[CHAT_TEMPLATE_FILE] = toy.folder / CHAT_TEMPLATE_FILE
    manifest = TextManifest(
        name=TEXT_MODEL,
        files=hash_files(files),
        context_tokens=toy.shape.context,
        vocab_tokens=toy.shape.vocab,
        bos_token=None,
        stop_tokens=(stop,),
    )
    return write_model_folder(models_dir, TEXT_MODEL, manifest, files)


@dataclass
class TextWorld:
    """A network of one node with one text model."""

    hub: HubWorld
    folder: ModelFolder

    async def use(self, work: Callable[[openai.OpenAI], Any]) -> Any:
        """Run work with a client in a thread, as a user's program would."""

        def run() -> Any:
            url = self.hub.url + "/v1"
            with openai.OpenAI(base_url=url, api_key=self.hub.api_key, max_retries=0, timeout=20) as client:
                return work(client)

        return await trio.to_thread.run_sync(run)


@asynccontextmanager
async def text_world(folder: Path, toy: ToyDecoder, **settings: Any) -> AsyncIterator[TextWorld]:
    """Everything, connected. `settings` are the hub's."""
    models_dir = folder / "models"
    model = write_toy_folder(models_dir, toy)
    (folder / "node").mkdir()
    async with (
        running_world(folder, **settings) as hub,
        open_ledger(folder / "node" / "ledger.db", {"node": SPEC.migrations}) as ledger,
    ):
        config = NodeConfig(
            NODE_FILE,
            HUB_KEY.address,
            f"ws://127.0.0.1:{hub.role.ports['tunnel']}",
            model=(ModelConfig("embedded", TEXT_MODEL),),
            models_dir=models_dir,
            check_bundles=False,
        )
        context = make_context(
            "node", ledger, deployment=DEPLOYMENT, clock=SystemClock(), keys={NODE_FILE: node_key(0)}
        )
        async with running_role(SPEC.build(config), context):
            await hub.until(lambda: TEXT_MODEL in hub.plane.board.list_models())
            yield TextWorld(hub, model)
