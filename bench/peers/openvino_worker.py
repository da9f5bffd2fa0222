"""OpenVINO GenAI as a bench worker: MODEL THREADS CONTEXT. It reads GGUF itself."""

import sys

import numpy as np
import openvino as ov
import openvino_genai
from worker import serve


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    run = 0

    def metrics(command: dict, tokens: int):
        nonlocal run
        run += 1
        ids = np.array([[100 + run % 9000, *command["ids"][1:]]], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens, config.ignore_eos = tokens, tokens, True
        config.do_sample = False
        return pipeline.generate(inputs, config).perf_metrics

    def prefill(command: dict) -> float:
        return len(command["ids"]) / (metrics(command, 1).get_ttft().mean / 1000)

    def decode(command: dict) -> float:
        return 1000 / metrics(command, command["tokens"] + 1).get_tpot().mean

    serve(f"openvino_genai {openvino_genai.__version__}", {"prefill": prefill, "decode": decode})


if __name__ == "__main__":
    main()
