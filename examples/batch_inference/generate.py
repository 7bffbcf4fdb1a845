"""Generate for every row of Parquet files with Ray Data, on this machine or on a cluster.

    python examples/batch_inference/generate.py questions.parquet answers --model released-onnx --field question

The answers have the columns of the questions and behind them output, score and cut, which docs/python.md explains; all
three are null where a field is. Rows may come in another order.
"""

import argparse
import os
import sys

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from mist_fairseq import OnnxGenerator
from mist_fairseq.generate.decoding import DECODINGS, Decoding

COLUMNS = {"output": pa.string(), "score": pa.float32(), "cut": pa.bool_()}


class Worker:
    """A model in a process of its own, on one core."""

    def __init__(self, model: str, precision: str, fields: list[str], decoding: Decoding):
        self.generator = OnnxGenerator.from_pretrained(model, precision, threads=1)
        self.fields, self.decoding = fields, decoding

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the block with its answers."""
        rows = list(zip(*(block[field].to_pylist() for field in self.fields)))
        texts = [row for row in rows if None not in row]
        outputs = iter(self.generator.generate(texts, decoding=self.decoding, return_scores=True, progress=False))
        made = [None if None in row else next(outputs) for row in rows]
        answers = [(None, None, None) if output is None else (output.text, output.score, output.cut) for output in made]
        for index, (name, kind) in enumerate(COLUMNS.items()):
            block = block.append_column(name, pa.array([answer[index] for answer in answers], kind))
        return block


def connect(address: str | None, workers: int | None) -> int:
    """Connect to a cluster, or start one of this machine, and return the number of workers.

    A CPU of each node is left to reading and writing, for which Ray Data would otherwise wait forever.
    """
    if address is None:
        workers = workers or len(os.sched_getaffinity(0))
        ray.init(num_cpus=workers + 1, include_dashboard=False)
        return workers
    ray.init(address)
    room = sum(max(int(node["Resources"].get("CPU", 0)) - 1, 0) for node in ray.nodes() if node["Alive"])
    if not 1 <= (workers or room) <= room:
        raise ValueError(f"the cluster has room for {room} workers: ask for fewer, or start nodes with more --num-cpus")
    return workers or room


def check_columns(path: str, names: list[str], fields: list[str]):
    """ValueError: a field is missing, or a column of the answers is there."""
    if missing := set(fields) - set(names):
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}, but {', '.join(names)}")
    if taken := COLUMNS.keys() & set(names):
        raise ValueError(f"{path} has {', '.join(sorted(taken))} already, which the answers are to have: rename it")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="a Parquet file, or a folder of them")
    parser.add_argument("output", help="a folder that is not there yet")
    parser.add_argument("--model", required=True, help="a folder of scripts/export.py --to onnx, or a name on the hub")
    parser.add_argument("--field", nargs="+", required=True, help="columns that are read as one, with [SEP] in between")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="int8", help="(default: %(default)s)")
    parser.add_argument("--decoding", choices=DECODINGS, default="single-pass", help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="of the decoding (default: 1 of single-pass, else 3)")
    parser.add_argument("--address", help="of a Ray cluster (default: one is started on this machine)")
    parser.add_argument("--workers", type=int, help="(default: one a core, or as many as the cluster has room for)")
    parser.add_argument("--block", type=int, default=4096, help="rows that a worker gets at once (default: 4,096)")
    parser.add_argument("--file", type=int, default=500_000, help="rows of an output file, at least (default: 500,000)")
    args = parser.parse_args()
    model = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
    try:
        decoding = Decoding(args.decoding, args.iterations)
        workers = connect(args.address, args.workers)
        questions = ray.data.read_parquet(args.input)
        check_columns(args.input, questions.schema().names, args.field)
        # A file is one block, whatever its size: small ones give all workers something to do, and little to do again.
        questions.repartition(target_num_rows_per_block=args.block).map_batches(
            Worker,
            fn_constructor_args=(model, args.precision, args.field, decoding),
            batch_size=None,  # the block
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=workers),
            num_cpus=1,
        ).write_parquet(args.output, mode="error", min_rows_per_file=args.file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
