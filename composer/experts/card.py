"""What the library of LoRAs knows of one file, without having read its weights."""

from __future__ import annotations

from pathlib import Path

from composer.experts.hashes import file_hash_of, tensor_hash_of
from composer.experts.header import read_header
from composer.experts.info import LoraInfo
from composer.experts.library import EMBEDDINGS_FOLDER, GATES_FOLDER, MIXLORA_FOLDER, Entry, Kind
from composer.experts.magic import REFUSED_SUFFIXES
from composer.experts.metadata import read_info
from composer.experts.names import expert_name
from composer.experts.sidecar import with_sidecars
from composer.experts.supported import check_supported

Card = Entry[LoraInfo]


def read_card(path: Path) -> LoraInfo:
    """What a LoRA file says of itself; its header alone is read.

    Raises:
        ComposerError: it cannot be used.
    """
    header = read_header(path)
    check_supported(header)
    return read_info(header)


LORAS = Kind(
    suffixes=(".safetensors", *REFUSED_SUFFIXES),
    skipped=(GATES_FOLDER, MIXLORA_FOLDER, EMBEDDINGS_FOLDER),
    read=read_card,
    # What the metadata claims is not asked: trainers have written the same for all files.
    hash=tensor_hash_of,
    other_hash=file_hash_of,
    unknown="LoRA {name}: there is no such LoRA.",
    remedy="Put its .safetensors file into one of the LoRA folders ({folders}).",
    blank=lambda path: LoraInfo(title=expert_name(path)),
    beside=with_sidecars,
)
