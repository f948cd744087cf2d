"""A network as TFLite, for one size of input."""

from __future__ import annotations

from pathlib import Path

import torch

from img2pose_edge.training.networks.edge import STRIDES

try:
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
except ImportError as error:
    raise ImportError('TFLite needs litert-torch: pip install "img2pose-edge[export-tflite]"') from error

MULTIPLE = max(STRIDES)


def check_size(size: tuple[int, int]) -> None:
    """Raise ``ValueError`` if no input can have this height and width."""
    if min(size) < 2 * MULTIPLE or any(side % MULTIPLE for side in size):
        raise ValueError(f"height and width must be multiples of {MULTIPLE} and at least {2 * MULTIPLE}, got {size}")


def write_tflite(graph: torch.nn.Module, out: Path, size: tuple[int, int], quantized: bool) -> None:
    """Write a folded network, or a quantized graph whose weights are not folded (the converter does that itself).

    Args:
        size: height and width of the input, for which TFLite plans its memory.
    """
    # Only tells the converter to keep integers: the graph has its steps already.
    kind = QuantConfig(PT2EQuantizer().set_global(get_symmetric_quantization_config())) if quantized else None
    picture = torch.zeros(1, *size, 3, dtype=torch.uint8)
    litert_torch.convert(graph, (picture,), quant_config=kind).export(str(out))


def halve(path: Path) -> None:
    """Store float weights as float16; XNNPACK computes in float16 where the CPU can."""
    from ai_edge_quantizer import qtyping, quantizer

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    recipe = quantizer.Quantizer(str(path))
    recipe.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        ),
        algorithm_key="float_casting",
    )
    path.write_bytes(recipe.quantize().quantized_model)
