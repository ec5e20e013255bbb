"""How each engine's server speaks. `ALL` by name."""

from tests.engines.fake import Wire
from tests.engines.wires.llamacpp import LlamaCppWire
from tests.engines.wires.tgi import TgiWire
from tests.engines.wires.triton import TritonWire
from tests.engines.wires.vllm import VllmWire

ALL: dict[str, Wire] = {
    "llamacpp": LlamaCppWire(),
    "vllm": VllmWire(),
    "tgi": TgiWire(),
    "triton": TritonWire(),
    "triton-one-text": TritonWire(one_text=True),
}
