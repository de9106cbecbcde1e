"""What other servers have and this one leaves out on purpose: said so, where somebody asks."""

from __future__ import annotations

_LORA = (
    "LoRA adapters are not supported; accepted: as model, a folder that the adapter was merged into"
)
_SPECULATION = "speculative decoding is not supported; leave it out"
_MEDIA = "multimodal input is not supported: models are served for text alone; leave it out"

_REASONS = {
    _LORA: {"lora", "loras", "qlora", "adapter", "adapters"},
    _SPECULATION: {"speculative", "speculation", "draft", "drafts", "eagle", "medusa", "mtp"},
    _MEDIA: {"multimodal", "mm", "vision", "image", "images", "video", "videos"},
}


def out_of_scope(name: str) -> str | None:
    """Why a key, field or option of this name is not taken; None where it is merely unknown.

    Names are told by their words: ``enable_lora``, ``max_loras`` and ``--lora-modules`` alike.
    """
    words = set(name.lower().replace("-", "_").split("_"))
    for reason, telling in _REASONS.items():
        if words & telling:
            return reason
    return None
