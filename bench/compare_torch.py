"""Datong on `torch:cpu` beside transformers in eager mode: the same torch, process, threads, element type and values.

    python bench/compare_torch.py MODEL [--rounds 7] [--threads 2] [--dtypes f32,bf16] [--tokens 64]

The transformers model is built from the package's own weights, dequantised, so both compute the same sums; the largest
difference of their logits is printed. They are asked in turn, A B C, B C A, …; a ratio
is the median of those of each turn, since the machine may be busier in one turn than in another. Transformers
runs its bare forward pass in a greedy loop with its DynamicCache (less than its `generate` does), once with SDPA and
once with its own attention; Datong runs its engine: scheduler, paged cache, sampler. A CSV goes into bench/results/.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from compare import commit, machine

import datong
from datong.backends.reference.weights import Weights
from datong.engine.load import compile_package

PREFILL = (32, 128, 512)
DECODE = (16, 512)
IDS = [(i * 7919 + 13) % 40000 + 100 for i in range(2048)]  # any fixed, ordinary token ids
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
Ask = Callable[[str, list[int], int], float]  # (what, ids, tokens) -> tokens per second


def datong_side(path: str, dtype: str, threads: int) -> tuple[Ask, Callable[[list[int]], torch.Tensor]]:
    model = datong.load(path, "torch:cpu", strict=True, threads=threads, compute_dtype=dtype, context=2048)

    def ask(what: str, ids: list[int], tokens: int) -> float:
        timings = model.generate(ids, max_tokens=tokens + 1, ignore_eos=True, temperature=0).timings
        return timings.decode_rate if what == "decode" else timings.prefill_rate

    return ask, lambda ids: torch.tensor(model.logits(ids))


def transformers_model(path: str, dtype: str) -> torch.nn.Module:
    program = compile_package(path, "torch:cpu")
    values = {name: value for part in program.parts for name, value in part.values.items()}
    files = Weights(program.package, values, keep_bytes=0)
    config = transformers.AutoConfig.from_pretrained(program.package)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=TORCH[dtype])
    state = {name: torch.tensor(files.whole(name)) for name, value in values.items() if value.kind == "weight"}
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = set(missing) - {"lm_head.weight"} if config.tie_word_embeddings else set(missing)
    if left or unexpected:
        sys.exit(f"weights do not fit: missing {sorted(left)[:3]}, unexpected {sorted(unexpected)[:3]}")
    return model.eval()


def transformers_side(model: torch.nn.Module, attention: str) -> tuple[Ask, Callable[[list[int]], torch.Tensor]]:
    def first(ids: list[int]) -> tuple[transformers.DynamicCache, torch.Tensor]:
        cache = transformers.DynamicCache(config=model.config)
        logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return cache, logits[0, -1].argmax().reshape(1, 1)

    @torch.inference_mode()
    def ask(what: str, ids: list[int], tokens: int) -> float:
        model.set_attn_implementation(attention)
        begin = time.perf_counter()
        cache, token = first(ids)
        token.item()
        if what == "prefill":
            return len(ids) / (time.perf_counter() - begin)
        begin = time.perf_counter()
        for _ in range(tokens):
            token = model(token, past_key_values=cache, use_cache=True).logits[0, -1].argmax().reshape(1, 1)
            token.item()
        return tokens / (time.perf_counter() - begin)

    @torch.inference_mode()
    def logits(ids: list[int]) -> torch.Tensor:
        model.set_attn_implementation(attention)
        return model(torch.tensor([ids])).logits[0].float()

    return ask, logits


def measure(sides: dict[str, Ask], rounds: int, tokens: int) -> dict[tuple[str, str], list[float]]:
    tasks = [(f"prefill {n}", "prefill", n, 0) for n in PREFILL] + [
        (f"decode at {n}", "decode", n, tokens) for n in DECODE
    ]
    results: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds + 1):  # the first is a warm-up
        order = list(sides)[round_ % len(sides) :] + list(sides)[: round_ % len(sides)]
        for task, what, count, more in tasks:
            for name in order:
                # another first token each time, so that no prefix is found in the cache
                value = sides[name](what, [100 + round_, *IDS[1:count]], more)
                if round_:
                    results.setdefault((task, name), []).append(value)
        print(f"round {round_}/{rounds}", file=sys.stderr)
    return results


def rows(dtype: str, results: dict[tuple[str, str], list[float]], names: list[str]) -> Iterator[list[object]]:
    for task in dict.fromkeys(task for task, _ in results):
        row: list[object] = [dtype, task]
        for name in names:
            values = results[task, name]
            row += [round(statistics.median(values), 2), round(min(values), 2), round(max(values), 2)]
        ours = results[task, names[0]]
        for name in names[1:]:
            pairs = zip(ours, results[task, name], strict=True)
            row.append(round(statistics.median(a / b for a, b in pairs), 2))
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a package, a checkpoint directory, a GGUF file or a known name")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = []
    for dtype in options.dtypes.split(","):
        model = transformers_model(options.model, dtype)
        ours, ours_logits = datong_side(options.model, dtype, options.threads)
        sdpa, theirs_logits = transformers_side(model, "sdpa")
        eager, _ = transformers_side(model, "eager")
        gap = (ours_logits(IDS[:64]) - theirs_logits(IDS[:64])).abs().max()
        print(f"{dtype}: largest difference of logits {gap:.2g}", file=sys.stderr)
        sides = {"datong": ours, "transformers sdpa": sdpa, "transformers eager": eager}
        table += list(rows(dtype, measure(sides, options.rounds, options.tokens), list(sides)))
        del model, ours, ours_logits, sdpa, eager, theirs_logits, sides
    names = ["datong", "sdpa", "eager"]
    columns = [f"{name} {what}".replace(" median", "") for name in names for what in ("median", "least", "most")]
    header = ["dtype", "task", *columns, "ratio sdpa", "ratio eager"]
    facts = [
        machine(),
        f"{options.threads} threads",
        Path(str(options.model)).stem,
        f"datong {datong.__version__}",
        f"torch {torch.__version__}",
        f"transformers {transformers.__version__}",
        f"commit {commit()}",
    ]
    print(" | ".join(facts))
    print(f"{'dtype':<6}{'task':<15}" + "".join(f"{column:>15}" for column in header[2:]))
    for row in table:
        print(f"{row[0]:<6}{row[1]:<15}" + "".join(f"{cell:>15}" for cell in row[2:]))
    stem = Path(str(options.model)).stem
    target = Path(__file__).resolve().parent / "results" / f"compare_torch-{stem}-{options.threads}t.csv"
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        command = f"python bench/compare_torch.py {stem} --rounds {options.rounds} --threads {options.threads}"
        writer.writerow([f"# {' | '.join(facts)}; {command}"])
        writer.writerow(header)
        writer.writerows(table)
    print(f"written to {target.relative_to(target.parents[2])}", file=sys.stderr)


if __name__ == "__main__":
    main()
