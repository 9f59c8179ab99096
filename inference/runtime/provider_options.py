"""What the execution providers of an NVIDIA device are told; not measured: no device was at hand.

Sources: onnxruntime.ai/docs/execution-providers, the CUDA and TensorRT pages.
"""

from pathlib import Path

from inference.runtime.engine_plan import CPU, CUDA, TENSORRT, EnginePlan

Options = dict[str, str]
ProviderWithOptions = tuple[str, Options]


def provider_chain(plan: EnginePlan, folder: Path | None) -> list[ProviderWithOptions]:
    """Execution providers with their options, most wanted first; the CPU takes what the others cannot.

    `folder` is where TensorRT keeps what it built; only `dicom-node prepare` builds.
    """
    if plan.provider == TENSORRT:
        return [(TENSORRT, tensorrt_options(plan, folder)), (CUDA, cuda_options(plan)), (CPU, {})]
    if plan.provider == CUDA:
        return [(CUDA, cuda_options(plan)), (CPU, {})]
    return [(CPU, {})]


def cuda_options(plan: EnginePlan) -> Options:
    """Options of CUDAExecutionProvider."""
    return {
        "device_id": "0",
        # EXHAUSTIVE tunes anew for every shape (634 ms against 1.9); DEFAULT falls back to a slow kernel.
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",  # the footprint is what the model needs, no power of two
        "use_tf32": "0",  # ten bits of mantissa would not pass for float32
        "enable_cuda_graph": str(int(plan.is_graph_captured)),
    }


def tensorrt_options(plan: EnginePlan, folder: Path | None) -> Options:
    """Options of TensorrtExecutionProvider: all that it builds lies in `folder`; types are the graph's.

    No `trt_fp16_enable`: TensorRT 11 knows strong typing only, and in float16 SAM's encoder has overflowed.

    Raises
    ------
    ValueError
        If there is no folder: TensorRT would build again at every start.
    """
    if folder is None:
        raise ValueError("TensorRT needs a folder for what it builds")
    return {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(folder),
        "trt_cuda_graph_enable": str(int(plan.is_graph_captured)),
        "trt_builder_optimization_level": "5",
    }
