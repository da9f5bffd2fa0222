"""Makes the model that ort_genai_worker.py runs: MODEL.gguf DIRECTORY.

ONNX Runtime GenAI does not read block formats of GGUF. transformers widens the weights to f32, and ORT GenAI's own
builder rounds them again: so these are not the same bits. They are as near as its formats come: symmetric int4 or int8
by what most of the file is, blocks of 32, int8 activations (accuracy level 4); the output matrix is int8 where the file
has it so; an embedding beside int8 stays f32, as the builder rounds it to int4 only; of a prompt only the last logits,
as with the other engines. A file that is neither ends in a sentence. Needs transformers, torch, accelerate, onnx_ir.
"""

from __future__ import annotations

import collections
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = {"Q4_0": "int4", "Q4_1": "int4", "Q4_K": "int4", "Q8_0": "int8"}


def kinds(model: Path) -> tuple[str, str]:
    """`int4` or `int8`: of most of the file, and of its output matrix."""
    from gguf import GGUFReader

    tensors = {tensor.name: tensor for tensor in GGUFReader(model).tensors}
    sizes: collections.Counter[str] = collections.Counter()
    for tensor in tensors.values():
        sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
    most = sizes.most_common(1)[0][0]
    if most not in KINDS:
        sys.exit(f"most of {model.name} is {most}, its builder has int4 and int8 only")
    head = tensors.get("output.weight") or tensors["token_embd.weight"]
    return KINDS[most], KINDS.get(head.tensor_type.name, "int8")  # Q6_K is nearer to int8


def widen(model: Path, target: Path) -> None:
    """The GGUF file as a Hugging Face directory of f32 weights."""
    import torch
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    network.hf_quantizer = None  # else it counts as quantised and is not saved
    network.config.__dict__.pop("quantization_config", None)
    network.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(target)


def build(model: Path, target: Path) -> None:
    """Into `target`, which appears when it is complete."""
    kind, head = kinds(model)
    options = ["block_size=32", "accuracy_level=4", "is_symmetric=true", "prune_lm_head=true", "hf_token=false"]
    if kind == "int4":
        options.append("op_types_to_quantize=MatMul/Gather")  # Gather: the embedding, in int4 only
    if head != kind:  # rtn: by the default algorithm 0.18.0 names the shared matrix wrongly, and nothing loads
        options += [f"matmul_mixed_precision=last_matmul:{head}", "algo_config=rtn"]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source, made, cache = (Path(scratch) / name for name in ("source", "made", "cache"))
        widen(model, source)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(made),
                   "-p", kind, "-e", "cpu", "-c", str(cache), "--extra_options", *options]  # fmt: skip
        subprocess.run(builder, check=True)
        (made / "kind.txt").write_text(kind)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def main() -> None:
    model, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    os.environ["HF_HUB_OFFLINE"] = "1"
    build(model, target)


if __name__ == "__main__":
    main()
