"""Source and target pass in ONNX Runtime, on a CPU."""

from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mist_fairseq.engines.graph import head_graph, layers_graph
from mist_fairseq.hub.onnx_generator import start_session
from mist_fairseq.mist.encoder import Encoder, Passes, argmax, pack


class OnnxRuntimeEncoder(Passes):
    """An ``Encoder``'s passes, by sessions of ONNX Runtime with as many threads as torch has.

    All positions are computed, padding too; at batch size 1 there is none.

    Args:
        encoder: whose weights to take; later changes of them go unnoticed.
        never_predicted: ids that are never an output.
        int8: quantize the matrix products.

    Raises:
        ValueError: a package is not installed, or the encoder is not on the CPU or not in fp32.
    """

    def __init__(self, encoder: Encoder, never_predicted: Tensor, int8: bool):
        if encoder.word_embeddings.weight.device.type != "cpu":
            raise ValueError("--accelerate onnxruntime is for CPUs: add --cpu, or use --accelerate cudagraph")
        if encoder.word_embeddings.weight.dtype != torch.float32:
            raise ValueError("--accelerate onnxruntime needs weights in fp32: leave out --fp16")
        self.config, self.relative_bias = encoder.config, encoder.relative_bias
        self.length_logits = encoder.length_logits
        self._layers = _session(layers_graph(encoder, int8))
        self._head = _session(head_graph(encoder, never_predicted, int8))
        numbers = range(self.config.layers)
        self._past = [(f"past_key{i}", f"past_value{i}") for i in numbers]
        self._own = [name for i in numbers for name in (f"key{i}", f"value{i}")]
        self._nothing = np.zeros((1, self.config.heads, 0, self.config.hidden_size // self.config.heads), np.float32)

    def _run(self, tokens, positions, types, mask, index, source):
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        mask = mask.expand(-1, -1, tokens.shape[1], -1).contiguous()
        inputs = {"tokens": tokens, "positions": positions, "types": types, "mask": mask}
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        if source is None:
            nothing = self._nothing.repeat(len(tokens), axis=0)
            feed |= {name: nothing for names in self._past for name in names}
            wanted = self._own
        else:
            for (key, value), *given in zip(self._past, source.keys, source.values):
                feed[key], feed[value] = (tensor.numpy() for tensor in given)
            wanted = []
        hidden, *own = map(torch.from_numpy, self._layers.run(["hidden", *wanted], feed))
        return pack(hidden, index), own[::2], own[1::2]

    def likeliest_tokens(self, hidden: Tensor, never: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probabilities; *never* is part of the head. *Shape:* (N, D) -> (N), (N)."""
        scores = torch.from_numpy(self._head.run(["scores"], {"hidden": hidden.numpy()})[0])
        tokens = argmax(scores)
        return tokens, scores.gather(1, tokens[:, None])[:, 0]

    @contextmanager
    def context(self):
        """One thread for torch's small operations: more would wait busily, in the way of ONNX Runtime's."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _session(model):
    """What runs a graph."""
    return start_session(model.SerializeToString(), torch.get_num_threads())
